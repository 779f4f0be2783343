"""Frequency caps and the deadline of requests with many imps."""

from __future__ import annotations

from leadre.serve.bidding.caps import MAX_FULL_CAPS
from leadre.types import Verdict

from ...evaluate.replay.test_answer import replayed
from ..alone import IMP, Alone, banner_request, chosen, verdicts
from ..conftest import make_ad
from .test_respond import USER, offer


def imps(count):
    return [IMP | {"id": str(number)} for number in range(count)]


def reservations(alone):
    return [name for name, _ in alone.store.calls].count("reserve")


def test_full_cap_is_asked_once_for_all_imps_of_a_request(tmp_path):
    with Alone(tmp_path / "state") as alone:
        names = [f"a{number}" for number in range(MAX_FULL_CAPS + 10)]
        for name in names:
            offer(alone, name, cap_per_day=1)
        offer(alone, "uncapped", bid_nanos=1_000)
        alone.put_list("known", *names, "uncapped")
        alone.renew()
        while len(chosen(alone.bid(user=USER, imp=imps(10)))) > 1:
            pass
        alone.store.calls.clear()
        decision = alone.bid(user=USER, imp=imps(30))
        assert reservations(alone) == MAX_FULL_CAPS
        assert chosen(decision) == ["uncapped"]
        assert {verdicts(alone, decision, imp=1)[name] for name in names} == {Verdict.FREQUENCY_CAP}


def test_requests_whose_caps_fill_between_imps_replay_alike(tmp_path):
    """With exploration, which draws among the candidates whose cap is not known to be full."""
    with Alone(tmp_path / "state", exploration=0.5) as alone:
        for name in ("a", "b", "c", "d"):
            offer(alone, name, cap_per_day=2)
        alone.campaign_store.put_ad(ad_of("c-a", "a2"))
        offer(alone, "e")
        alone.put_list("known", "a", "b", "a2", "c", "d", "e")
        alone.renew()
        records = []
        for number in range(12):
            request = banner_request(id=f"r{number}", user=USER, imp=imps(5))
            records.append(alone.record(request, alone.respond(request)))
        report = replayed(alone, *records)
    assert any(Verdict.FREQUENCY_CAP in row for record in records for row in record.verdicts.values())
    assert report.alike == report.compared == len(records), report.differences


def ad_of(campaign_id, name):
    return make_ad(name, campaign_id=campaign_id, object_id=name)


def end_time_at(alone, call):
    """Move the clock past each deadline at the call of a number, of reservations in the store."""
    reserve = alone.store.store.reserve
    numbers = iter(range(1, 1000))

    def late(*arguments, **named):
        if next(numbers) == call:
            alone.clock.elapsed_s += 10.0
        return reserve(*arguments, **named)

    alone.store.store.reserve = late


def test_deadline_between_imps_keeps_the_bids_before_it(tmp_path):
    with Alone(tmp_path / "state") as alone:
        for name in ("a", "b", "c", "d"):
            offer(alone, name, cap_per_day=1)
        alone.put_list("known", "a", "b", "c", "d")
        alone.renew()
        end_time_at(alone, 2)
        request = banner_request(user=USER, imp=imps(4))
        decision = alone.respond(request)
        assert chosen(decision) == ["a", "b"] and decision.reason is None
        record = alone.record(request, decision)
        assert [set(record.verdicts[imp]) for imp in ("2", "3")] == [{Verdict.NOT_EVALUATED}] * 2
        assert replayed(alone, record).skipped == {"late": 1}
