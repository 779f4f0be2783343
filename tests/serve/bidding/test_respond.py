"""What is offered, from which source, at which price and with which propensity, and why something is not offered."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from leadre.errors import PeerError
from leadre.serve.bidding.respond import MIN_GENERATE_S
from leadre.serve.bidding.value import PRIOR_RATES
from leadre.serve.ipc.messages import GenerateReply
from leadre.serve.protocol.openrtb import NoBid
from leadre.store.contract import Cap
from leadre.types import Targeting, Verdict

from ..alone import IMP, NOON_US, Alone, asked, chosen, urls_of, verdicts
from ..conftest import make_ad, make_campaign

USER = {"id": "known"}


@pytest.fixture
def alone(tmp_path):
    with Alone(tmp_path / "state") as made:
        yield made


def offer(alone, name, ad=None, **terms):
    """A campaign and its only ad, ``name``, which shows the object of this name."""
    alone.book.put_campaign(make_campaign(f"c-{name}", **terms))
    alone.book.put_ad(make_ad(name, campaign_id=f"c-{name}", object_id=name, **ad or {}))


@pytest.fixture
def three(alone):
    """Ads `listed`, `generated` and `popular`, each of its source alone."""
    for name in ("listed", "generated", "popular"):
        offer(alone, name)
    alone.remember("known", "listed")
    alone.remember("*", "popular")
    for user in ("known", "unlisted"):
        alone.has_done(user, "listed")
    alone.renew(object_ids=("generated",))
    return alone


def says(alone, *objects, after_s=0.0):
    """A language model that answers with objects after a time of the test's clock; returns what it was asked."""
    heard = []

    async def generate(wanted):
        heard.append(wanted)
        alone.clock.elapsed_s += after_s
        return GenerateReply(list(objects), [-1.0] * len(objects), True)

    alone.bidder.generate = generate
    return heard


def sources(answer):
    return [(each.bid.source, each.bid.ad_id) for each in answer.rendered]


# Where candidates come from


def test_a_stored_list_is_used_first_and_the_model_is_not_asked(three):
    heard = says(three, 0)
    assert sources(three.answer(user=USER)) == [("stored", "listed")] and heard == []


def test_without_a_list_the_model_is_asked_for_what_may_be_shown_until_the_deadline(three):
    heard = says(three, 0)
    assert sources(three.answer(user={"id": "unlisted"}, tmax_s=0.2)) == [("generated", "generated")]
    (wanted,) = heard
    assert (wanted.user_id, [seen.object_id for seen in wanted.recent]) == ("unlisted", ["listed"])
    assert wanted.until_s == pytest.approx(three.clock.elapsed_s + 0.2)
    assert np.unpackbits(np.frombuffer(wanted.eligible, np.uint8))[0] == 1
    three.book.set_ad_status("generated", "paused")
    three.renew(object_ids=("generated",))
    assert sources(three.answer(user={"id": "unlisted"})) == [("contextual", "popular")]


def test_a_list_of_which_nothing_is_live_is_no_list(three):
    says(three, 0)
    three.book.set_ad_status("listed", "paused")
    three.renew(object_ids=("generated",))
    assert sources(three.answer(user=USER)) == [("generated", "generated")]


@pytest.mark.parametrize("user", [{}, {"id": "without a history"}, {"id": "x" * 500}, {"id": "a\0b"}])
def test_of_whom_nothing_is_known_the_model_is_not_asked(three, user):
    heard = says(three, 0)
    assert sources(three.answer(user=user)) == [("contextual", "popular")] and heard == []


def test_without_time_the_model_is_not_asked(three):
    heard = says(three, 0)
    answer = three.answer(user={"id": "unlisted"}, tmax_s=MIN_GENERATE_S * 0.9)
    assert sources(answer) == [("contextual", "popular")] and heard == []


def test_a_model_that_says_nothing_or_is_gone_leaves_the_context(three):
    says(three)
    assert sources(three.answer(user={"id": "unlisted"})) == [("contextual", "popular")]

    async def gone(wanted):
        raise PeerError("the model: gone")

    three.bidder.generate = gone
    assert sources(three.answer(user={"id": "unlisted"})) == [("contextual", "popular")]


def test_after_the_deadline_nothing_is_offered_and_nothing_is_held(three):
    three.book.put_campaign(make_campaign("c-generated", cap_per_day=1, daily_nanos=10**9))
    three.renew(object_ids=("generated",))
    says(three, 0, after_s=0.3)
    answer = three.answer(user={"id": "unlisted"}, tmax_s=0.2)
    assert (chosen(answer), answer.reason) == ([], NoBid.INSUFFICIENT_TIME)
    assert "reserve" not in {name for name, _ in three.store.asked}


# Who may be offered


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"campaign": {"status": "paused"}}, {}),
        ({"campaign": {"starts_at_us": NOON_US + 1}}, {}),
        ({"campaign": {"ends_at_us": NOON_US}}, {}),
        ({"campaign": {"targeting": Targeting(countries=frozenset({"DEU"}))}}, {}),
        ({"campaign": {"targeting": Targeting(segments=frozenset({"runner"}))}}, {}),
        ({"campaign": {"targeting": Targeting(segments=frozenset({"asked"}))}, "user": {"id": ""}}, {}),
        ({"campaign": {"currency": "EUR"}}, {}),
        ({"ad": {"status": "paused"}}, {}),
        ({"ad": {"iab_categories": ("IAB7-39",)}}, {"bcat": ["IAB7"]}),
        ({"ad": {"adomain": "shop.acme.test"}}, {"badv": ["shop.acme.test"]}),
        ({"ad": {"sizes": ((728, 90),)}}, {}),
        ({"ad": {"landing_url": "http://acme.test"}}, {"imp": [IMP | {"secure": 1}]}),
        ({"ad": {"attributes": frozenset({6})}}, {"imp": [{"id": "1", "banner": {"w": 300, "h": 250, "battr": [6]}}]}),
    ],
    ids=[
        *("campaign_status", "begins", "ends", "country", "segment", "segment_of_a_stranger", "currency"),
        *("ad_status", "bcat", "badv", "size", "secure", "battr"),
    ],
)
def test_what_the_rules_forbid_is_never_offered_and_is_said_to_be_so(alone, change, fields):
    """The better ad is forbidden, the other one is offered in its place; without the reason the better one is."""
    offer(alone, "better", bid_nanos=9_000_000)
    offer(alone, "other")
    alone.remember("known", "better", "other")
    alone.remember("*", "better", "other")
    user = {"id": "known", "data": [{"segment": [{"id": "asked"}]}]} | change.get("user", {})
    alone.renew()
    assert chosen(alone.answer(user=user)) == ["better"]
    offer(alone, "changed", change.get("ad"), **{"bid_nanos": 9_000_000} | change.get("campaign", {}))
    alone.remember("known", "changed", "other")
    alone.remember("*", "changed", "other")
    alone.renew()
    answer = alone.answer(user=user, **fields)
    assert chosen(answer) == ["other"]
    assert verdicts(alone, answer) == {"changed": Verdict.INELIGIBLE, "other": Verdict.BID}


def test_segments_come_from_the_request_and_the_profile(alone):
    for name in ("asked", "profile"):
        offer(alone, name, targeting=Targeting(segments=frozenset({name})))
    alone.remember("known", "asked", "profile")
    alone.has_done("known", segments=["profile"])
    alone.renew()
    places = [IMP, IMP | {"id": "2"}]
    user = {"id": "known", "data": [{"segment": [{"id": "asked"}]}]}
    assert chosen(alone.answer(user=user, imp=places)) == ["asked", "profile"]
    assert chosen(alone.answer(user=USER, imp=places)) == ["profile"]


@pytest.mark.parametrize(
    ("floor", "currency", "wanted"),
    [(2.0, "USD", Verdict.BID), (2.000001, "USD", Verdict.BELOW_FLOOR), (0.01, "EUR", Verdict.FLOOR_CURRENCY)],
)
def test_a_floor(alone, floor, currency, wanted):
    offer(alone, "a")
    alone.remember("*", "a")
    alone.renew()
    answer = alone.answer(imp=[IMP | {"bidfloor": floor, "bidfloorcur": currency}])
    assert verdicts(alone, answer) == {"a": wanted}
    assert answer.reason == {Verdict.BID: None, Verdict.BELOW_FLOOR: NoBid.BELOW_FLOOR}.get(wanted, NoBid.NO_CANDIDATE)


def test_a_budget_is_held_and_when_it_is_used_up_the_next_ad_is_offered(alone):
    offer(alone, "a", bid_nanos=9_000_000, daily_nanos=100_000_000)
    offer(alone, "b")
    alone.remember("*", "a", "b")
    alone.renew()
    answer = alone.answer()
    assert verdicts(alone, answer) == {"a": Verdict.NO_BUDGET, "b": Verdict.BID}, "nothing is leased yet"
    alone.renew()
    offered = Counter()
    for _ in range(40):
        answer = alone.answer()
        offered.update(chosen(answer))
        for each in answer.rendered:
            alone.happened(("bill", urls_of(each)["bill"].replace("${AUCTION_PRICE}", str(each.bid.price_nanos / 1e6))))
        alone.renew()
    assert offered["b"] == 40 - offered["a"] and 9 <= offered["a"] <= 11
    assert alone.desk.ledger.spent("c-a") <= 100_000_000


def test_a_cap_is_taken_when_an_ad_is_offered_and_released_when_it_is_lost(alone):
    offer(alone, "a", bid_nanos=9_000_000, cap_per_day=2, zone="Pacific/Auckland")
    offer(alone, "b")
    alone.remember("known", "a", "b")
    alone.renew()
    first = alone.answer(user=USER)
    assert [chosen(first)[0], *(chosen(alone.answer(user=USER))[0] for _ in range(3))] == ["a", "a", "b", "b"]
    assert verdicts(alone, alone.answer(user=USER)) == {"a": Verdict.FREQUENCY_CAP, "b": Verdict.BID}
    url = urls_of(first.rendered[0])["win"].replace("/win", "/loss")
    alone.happened(("loss", url))
    assert [chosen(alone.answer(user=USER))[0] for _ in range(2)] == ["a", "b"]
    alone.clock.wall_us += 12 * 3600 * 1_000_000  # past midnight in Auckland, not in UTC
    assert chosen(alone.answer(user=USER)) == ["a"]


def test_a_cap_that_cannot_be_counted_is_not_risked(alone):
    offer(alone, "a", cap_per_day=2)
    alone.remember("*", "a")
    alone.renew()
    answer = alone.answer()
    assert (verdicts(alone, answer), answer.reason) == ({"a": Verdict.UNKNOWN_USER_CAP}, NoBid.NO_CANDIDATE)


def test_a_test_is_answered_without_budget_and_cap(alone):
    offer(alone, "a", cap_per_day=1, daily_nanos=1)
    alone.remember("*", "a")
    alone.renew()
    assert [chosen(alone.answer(test=1)) for _ in range(3)] == [["a"]] * 3
    assert "reserve" not in {name for name, _ in alone.store.asked}


def test_places_of_a_request_show_different_ads_in_one_currency(alone):
    for name, currency in (("usd", "USD"), ("eur", "EUR"), ("usd2", "USD")):
        offer(alone, name, currency=currency)
    alone.remember("*", "usd", "eur", "usd2")
    alone.renew()
    answer = alone.answer(imp=[IMP, IMP | {"id": "2"}, IMP | {"id": "3"}], cur=["EUR", "USD"])
    assert chosen(answer) == ["usd", "usd2"]
    assert verdicts(alone, answer, 1)["usd"] == Verdict.DUPLICATE
    assert verdicts(alone, answer, 1)["eur"] == Verdict.RESPONSE_CURRENCY


def test_the_reason_is_the_furthest_that_a_candidate_came(alone):
    offer(alone, "low")
    offer(alone, "broke", bid_nanos=9_000_000, total_nanos=1)
    offer(alone, "capped", bid_nanos=9_000_000, cap_per_day=1)
    for user, ads in (("*", ["low"]), ("u1", ["low", "broke"]), ("u2", ["low", "broke", "capped"])):
        alone.remember(user, *ads)
    alone.renew()
    places = [IMP | {"bidfloor": 5.0}]
    alone.answer(user={"id": "u2"}, imp=places)
    found = [alone.answer(user={"id": user}, imp=places).reason for user in ("", "u1", "u2")]
    assert found == [NoBid.BELOW_FLOOR, NoBid.BUDGET_EXHAUSTED, NoBid.DAILY_USER_CAP]
    assert alone.answer(badv=["acme.test"]).reason == NoBid.NO_CANDIDATE


# What is paid


def test_the_price_is_the_bid_times_the_observed_rate_whatever_the_generator_thinks(alone):
    """Of a thousand impressions ten were clicked, a hundred of another ad; an impression costs what was bid for it."""
    offer(alone, "cpm")
    offer(alone, "cpc", bid_type="cpc", bid_nanos=10**9)
    offer(alone, "good", bid_type="cpc", bid_nanos=10**9)
    offer(alone, "cpa", bid_type="cpa", bid_nanos=10**9)
    alone.renew({"cpc": (1000, 10, 0), "good": (1000, 100, 0), "cpm": (1000, 900, 0)})
    overall = (110 + 200 * PRIOR_RATES["cpc"]) / 2200
    wanted = {
        "cpm": 2_000_000,
        "cpc": int(10**9 * (10 + 200 * overall) / 1200),
        "good": int(10**9 * (100 + 200 * overall) / 1200),
        "cpa": round(10**9 * PRIOR_RATES["cpa"]),
    }
    for log_p in (-0.001, -3.0, -60.0):
        for name, price_nanos in wanted.items():
            alone.remember("known", name, log_p=[log_p])
            (each,) = alone.answer(user=USER).rendered
            assert (each.bid.ad_id, each.bid.price_nanos) == (name, price_nanos)


def test_among_candidates_the_most_probable_value_comes_first(alone):
    """exp(-1) x 3 is less than exp(0) x 2, and exp(-1) x 6 is more."""
    offer(alone, "probable")
    offer(alone, "worth3", bid_nanos=3_000_000)
    offer(alone, "worth6", bid_nanos=6_000_000)
    alone.remember("u3", "probable", "worth3", log_p=[0.0, -1.0])
    alone.remember("u6", "probable", "worth6", log_p=[0.0, -1.0])
    alone.renew()
    assert [chosen(alone.answer(user={"id": user})) for user in ("u3", "u6")] == [["probable"], ["worth6"]]


# Exploration


def chi_square(counts, expected):
    return sum((counts[name] - wanted) ** 2 / wanted for name, wanted in expected.items())


@pytest.mark.parametrize(
    "held_back",
    [{}, {"a0": {"cap_per_day": 1}, "a2": {"cap_per_day": 1}, "a3": {"total_nanos": 1}}],
    ids=["all can be offered", "the best and another are capped, one has no budget"],
)
def test_ads_are_drawn_as_often_as_their_propensities_say(tmp_path, held_back):
    """10,000 requests: 2 % explore. An ad's share is its propensity, and weights 1 / propensity are 1 on average."""
    names, requests = [f"a{n}" for n in range(6)], 10_000
    with Alone(tmp_path / "state", seed=5, exploration=0.02) as alone:
        for name in names:
            offer(alone, name, **held_back.get(name, {}))
        alone.remember("known", *names)
        alone.renew()
        for name in held_back:  # the only place of the day is taken
            cap = Cap(f"c-{name}", NOON_US // 86_400_000_000, 1)
            alone.store.reserve("known", [cap], now_us=NOON_US, until_us=2 * NOON_US)
        request, seen, propensities = asked(user=USER), Counter(), {}
        for _ in range(requests):
            for each in alone.respond(request).rendered:
                seen[each.bid.ad_id] += 1
                propensities.setdefault(each.bid.ad_id, set()).add(round(each.bid.propensity, 12))
    assert all(len(found) == 1 for found in propensities.values()), propensities
    share = {name: found.pop() for name, found in propensities.items()}
    assert set(share) == set(names) - set(held_back)
    expected = {name: requests * p for name, p in share.items()}
    expected[""] = requests * (1 - sum(share.values()))  # no bid, where the one that was drawn turned out to be capped
    seen[""] = requests - sum(seen.values())
    if expected[""] < 1e-6:
        assert seen[""] == 0
        del expected[""]
    assert chi_square(seen, expected) < 25, (seen, expected)  # of at most 6 degrees of freedom: 1 in 3,000
    for name, p in share.items():
        assert seen[name] / p / requests == pytest.approx(1, abs=4 * ((1 - p) / p / requests) ** 0.5)


def test_only_the_best_are_drawn(tmp_path):
    with Alone(tmp_path / "state", exploration=0.99) as alone:
        names = [f"a{n:02d}" for n in range(30)]
        for name in names:
            offer(alone, name)
        alone.remember("*", *names)
        alone.renew()
        assert {chosen(alone.answer())[0] for _ in range(600)} == set(names[:20])


def test_who_is_drawn_instead_leaves_the_best_its_place_under_the_cap(tmp_path):
    with Alone(tmp_path / "state", exploration=0.9) as alone:
        offer(alone, "best", bid_nanos=9_000_000, cap_per_day=1)
        offer(alone, "other")
        users = [{"id": f"u{n}"} for n in range(30)]
        for user in users:
            alone.remember(user["id"], "best", "other")
        alone.renew()
        first = [chosen(alone.answer(user=user))[0] for user in users]
        alone.bidder.settings = dataclasses.replace(alone.bidder.settings, exploration=0.0)
        then = [chosen(alone.answer(user=user))[0] for user in users]
    assert set(zip(first, then, strict=True)) == {("best", "other"), ("other", "best")}


def test_what_is_explored_can_be_paid_soon(tmp_path):
    """Who is drawn needs a lease: those who explore have the ledger asked for all that could be."""
    with Alone(tmp_path / "state", exploration=0.5) as alone:
        names = [f"a{n}" for n in range(6)]
        for name in names:
            offer(alone, name, daily_nanos=10**12 if name != "a0" else 0)
        alone.remember("*", *names)
        seen = Counter()
        for _ in range(300):
            alone.renew()
            seen.update(chosen(alone.answer()))
        assert set(seen) == set(names), seen
