"""Comparison of a logged with a replayed decision, in one process."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from leadre.evaluate.replay.answer import ReplayWorld, replay
from leadre.serve.bidding.record import digest
from leadre.serve.callers.party import RECOMMEND
from leadre.serve.ipc.messages import AppendRequest
from leadre.serve.processes.recommend import RecommendRequest
from leadre.serve.rankers.published import PublishedRankers
from leadre.types import Verdict

from ...serve.alone import Alone, banner_request
from ...serve.conftest import make_ad, make_campaign


def replayed(alone, *records, has_old_rules=False):
    """The report of a replay of records, which the log gets first."""
    settings = alone.bidder.settings
    options = {"options": digest(settings, has_old_rules=has_old_rules)}
    records = [msgspec.structs.replace(record, versions=record.versions | options) for record in records]
    alone.writer.handle([AppendRequest(records)], alone.clock.wall_us)
    world = ReplayWorld(
        log=alone.paths.events,
        settings=settings,
        catalogue=alone.bidder.market.catalogue,
        store=alone.store,
        draws=alone.bidder.draws,
        model=None,
        rankers=PublishedRankers(alone.paths.rankers),
    )
    return asyncio.run(replay(world, len(records)))


@pytest.mark.parametrize(
    ("logged", "differences"),
    [
        ((Verdict.BID, Verdict.OUTRANKED), []),
        ((Verdict.BID, Verdict.NOT_SELECTED), []),  # the word of releases up to November 2026
        ((Verdict.BID, Verdict.BELOW_FLOOR), ["verdicts"]),
        ((Verdict.OUTRANKED, Verdict.NOT_SELECTED), ["verdicts"]),
    ],
)
def test_verdicts_of_older_releases_replay_alike(tmp_path, logged, differences):
    with Alone(tmp_path / "state") as alone:
        for name in ("a", "b"):
            alone.campaign_store.put_campaign(make_campaign(f"c-{name}"))
            alone.campaign_store.put_ad(make_ad(name, campaign_id=f"c-{name}"))
        alone.put_list("*", "a", "b")
        alone.renew()
        request = banner_request()
        record = alone.record(request, alone.respond(request))
        report = replayed(alone, msgspec.structs.replace(record, verdicts={"1": logged}))
    assert report.compared == 1 and [difference.what for difference in report.differences] == differences


@pytest.mark.parametrize("mechanism", ["gsp", "vcg"])
def test_prices_of_a_mechanism_replay_alike(tmp_path, mechanism):
    """With exploration, a campaign whose budget ends on the way, and fewer ads than slots."""
    with Alone(tmp_path / "state", mechanism=mechanism, slot_effects=(1.0, 0.6), exploration=0.5) as alone:
        for name, bid_nanos, total_nanos in (("a", 9, 10**12), ("b", 6, 20_000_000), ("c", 5, 0), ("d", 2, 10**12)):
            terms = {"bid_nanos": bid_nanos * 1_000_000, "total_nanos": total_nanos}
            alone.campaign_store.put_campaign(make_campaign(f"c-{name}", **terms))
            alone.campaign_store.put_ad(make_ad(name, campaign_id=f"c-{name}"))
        alone.put_list("*", "a", "b", "c", "d", log_p=[-1.0, -0.9, -1.0, -1.1])
        records = []
        for number in range(40):
            alone.renew()
            request = RecommendRequest(count=1 + number % 5).bid_request(f"r{number}")
            records.append(alone.record(request, alone.respond(request, party=RECOMMEND)))
        report = replayed(alone, *records)
    verdicts = {verdict for record in records for row in record.verdicts.values() for verdict in row}
    assert {Verdict.BID, Verdict.NO_BUDGET, Verdict.NOT_SELECTED} <= verdicts
    assert any(bid.price_nanos not in (9_000_000, 6_000_000, 5_000_000) for record in records for bid in record.bids)
    assert report.alike == report.compared == len(records), report.differences


def test_records_of_releases_that_kept_ties_and_priced_by_own_ads_replay_alike(tmp_path):
    """Two equal ads of one advertiser: such a release offered the first of the source, at the price of the second."""
    with Alone(tmp_path / "state", mechanism="gsp") as alone:
        alone.campaign_store.put_campaign(make_campaign("c"))
        for name in ("a", "b"):
            alone.campaign_store.put_ad(make_ad(name, campaign_id="c"))
        alone.put_list("*", "a", "b", log_p=[-1.0, -1.0])
        alone.renew()
        alone.bidder.has_old_rules = True
        request = RecommendRequest(count=1).bid_request("r")
        records = [alone.record(request, alone.respond(request, party=RECOMMEND)) for _ in range(8)]
        report = replayed(alone, *records, has_old_rules=True)
    assert {(bid.ad_id, bid.price_nanos) for record in records for bid in record.bids} == {("a", 2_000_000)}
    assert report.alike == report.compared == len(records), report.differences
