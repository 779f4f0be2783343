"""Bid decisions: source, price and propensity of each bid, and the reason for none."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from leadre.data.bids import PRIOR_RATES
from leadre.errors import PeerError
from leadre.serve.bidding.budgets import SEARCH_US
from leadre.serve.bidding.respond import MIN_GENERATE_S
from leadre.serve.ipc.messages import GenerateReply
from leadre.serve.protocol.openrtb import NoBid
from leadre.store.contract import Cap
from leadre.types import Targeting, Verdict

from ..alone import IMP, NOON_US, Alone, banner_request, chosen, urls_of, verdicts
from ..conftest import make_ad, make_campaign

USER = {"id": "known"}


@pytest.fixture
def alone(tmp_path):
    with Alone(tmp_path / "state") as alone:
        yield alone


def offer(alone, name, ad=None, **terms):
    """Add a campaign and its only ad ``name``, which shows the object of this name."""
    campaign = make_campaign(f"c-{name}", **terms)
    alone.campaign_store.put_campaign(campaign)
    fields = {"campaign_id": f"c-{name}", "object_id": name, "advertiser_id": campaign.advertiser_id}
    alone.campaign_store.put_ad(make_ad(name, **fields | (ad or {})))


@pytest.fixture
def three(alone):
    """Ads `listed`, `generated` and `popular`, each in its own source only."""
    for name in ("listed", "generated", "popular"):
        offer(alone, name)
    alone.put_list("known", "listed")
    alone.put_list("*", "popular")
    for user in ("known", "unlisted"):
        alone.put_profile(user, "listed")
    alone.renew(object_ids=("generated",))
    return alone


def set_model(alone, *objects, after_s=0.0):
    """Set a language model that replies with objects after ``after_s`` of the test's clock; returns its requests."""
    requests = []

    async def generate(request):
        requests.append(request)
        alone.clock.elapsed_s += after_s
        return GenerateReply(list(objects), [-1.0] * len(objects), True)

    alone.bidder.generate = generate
    return requests


def sources(decision):
    return [(rendered.bid.source, rendered.bid.ad_id) for rendered in decision.rendered]


# Sources of candidates


def test_stored_list_is_used_without_a_request_to_the_model(three):
    requests = set_model(three, 0)
    assert sources(three.bid(user=USER)) == [("stored", "listed")] and requests == []


def test_without_a_list_the_model_gets_eligible_objects_and_the_deadline(three):
    requests = set_model(three, 0)
    assert sources(three.bid(user={"id": "unlisted"}, tmax_s=0.2)) == [("generated", "generated")]
    (request,) = requests
    assert (request.user_id, [event.object_id for event in request.recent]) == ("unlisted", ["listed"])
    assert request.until_s == pytest.approx(three.clock.elapsed_s + 0.2)
    assert np.unpackbits(np.frombuffer(request.eligible, np.uint8))[0] == 1
    three.campaign_store.set_ad_status("generated", "paused")
    three.renew(object_ids=("generated",))
    assert sources(three.bid(user={"id": "unlisted"})) == [("contextual", "popular")]


def test_list_without_a_live_ad_falls_back_to_the_model(three):
    set_model(three, 0)
    three.campaign_store.set_ad_status("listed", "paused")
    three.renew(object_ids=("generated",))
    assert sources(three.bid(user=USER)) == [("generated", "generated")]


@pytest.mark.parametrize("user", [{}, {"id": "without a history"}, {"id": "x" * 500}, {"id": "a\0b"}])
def test_unknown_user_gets_the_popular_list_without_a_request_to_the_model(three, user):
    requests = set_model(three, 0)
    assert sources(three.bid(user=user)) == [("contextual", "popular")] and requests == []


def test_without_time_the_model_gets_no_request(three):
    requests = set_model(three, 0)
    decision = three.bid(user={"id": "unlisted"}, tmax_s=MIN_GENERATE_S * 0.9)
    assert sources(decision) == [("contextual", "popular")] and requests == []


def test_model_that_generates_nothing_or_is_away_falls_back_to_the_popular_list(three):
    set_model(three)
    assert sources(three.bid(user={"id": "unlisted"})) == [("contextual", "popular")]

    async def away(request):
        raise PeerError("the model: away")

    three.bidder.generate = away
    assert sources(three.bid(user={"id": "unlisted"})) == [("contextual", "popular")]


def test_after_the_deadline_there_is_no_bid_and_no_reservation(three):
    three.campaign_store.put_campaign(make_campaign("c-generated", cap_per_day=1, daily_nanos=10**9))
    three.renew(object_ids=("generated",))
    set_model(three, 0, after_s=0.3)
    decision = three.bid(user={"id": "unlisted"}, tmax_s=0.2)
    assert (chosen(decision), decision.reason) == ([], NoBid.INSUFFICIENT_TIME)
    assert "reserve" not in {name for name, _ in three.store.calls}


# Filters


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
        ({"ad": {"adomain": "shop.other.test"}}, {"badv": ["shop.other.test"]}),
        ({"ad": {"app_bundle": "com.acme"}}, {"bapp": ["com.acme"]}),
        ({"ad": {"language": "de"}}, {"wlang": ["fr", "en"]}),
        ({"ad": {"sizes": ((728, 90),)}}, {}),
        ({"ad": {"landing_url": "http://acme.test"}}, {"imp": [IMP | {"secure": 1}]}),
        ({"ad": {"attributes": frozenset({6})}}, {"imp": [{"id": "1", "banner": {"w": 300, "h": 250, "battr": [6]}}]}),
    ],
    ids=[
        *("campaign_status", "begins", "ends", "country", "segment", "segment_of_an_unknown_user", "currency"),
        *("ad_status", "bcat", "badv", "bapp", "wlang", "size", "secure", "battr"),
    ],
)
def test_ineligible_ad_is_never_bid_and_has_its_verdict(alone, change, fields):
    """The better ad is ineligible and the other one is bid; without the rule the better one is bid."""
    offer(alone, "better", bid_nanos=9_000_000)
    offer(alone, "other")
    alone.put_list("known", "better", "other")
    alone.put_list("*", "better", "other")
    user = {"id": "known", "data": [{"segment": [{"id": "asked"}]}]} | change.get("user", {})
    alone.renew()
    assert chosen(alone.bid(user=user)) == ["better"]
    offer(alone, "changed", change.get("ad"), **{"bid_nanos": 9_000_000} | change.get("campaign", {}))
    alone.put_list("known", "changed", "other")
    alone.put_list("*", "changed", "other")
    alone.renew()
    decision = alone.bid(user=user, **fields)
    assert chosen(decision) == ["other"]
    assert verdicts(alone, decision) == {"changed": Verdict.INELIGIBLE, "other": Verdict.BID}


def test_segments_come_from_the_request_and_the_profile(alone):
    for name in ("asked", "profile"):
        offer(alone, name, targeting=Targeting(segments=frozenset({name})))
    alone.put_list("known", "asked", "profile")
    alone.put_profile("known", segments=["profile"])
    alone.renew()
    imps = [IMP, IMP | {"id": "2"}]
    user = {"id": "known", "data": [{"segment": [{"id": "asked"}]}]}
    assert chosen(alone.bid(user=user, imp=imps)) == ["asked", "profile"]
    assert chosen(alone.bid(user=USER, imp=imps)) == ["profile"]


@pytest.mark.parametrize(
    ("floor", "currency", "verdict"),
    [(2.0, "USD", Verdict.BID), (2.000001, "USD", Verdict.BELOW_FLOOR), (0.01, "EUR", Verdict.FLOOR_CURRENCY)],
)
def test_bid_is_dropped_below_floor(alone, floor, currency, verdict):
    offer(alone, "a")
    alone.put_list("*", "a")
    alone.renew()
    decision = alone.bid(imp=[IMP | {"bidfloor": floor, "bidfloorcur": currency}])
    assert verdicts(alone, decision) == {"a": verdict}
    assert decision.reason == {Verdict.BID: None, Verdict.BELOW_FLOOR: NoBid.BELOW_FLOOR}.get(
        verdict, NoBid.NO_CANDIDATE
    )


def test_budget_is_reserved_and_the_next_ad_is_bid_when_it_is_used_up(alone):
    offer(alone, "a", bid_nanos=9_000_000, daily_nanos=100_000_000)
    offer(alone, "b")
    alone.put_list("*", "a", "b")
    alone.renew()
    decision = alone.bid()
    assert verdicts(alone, decision) == {"a": Verdict.NO_BUDGET, "b": Verdict.BID}, "nothing is leased yet"
    alone.renew()
    bids = Counter()
    for _ in range(40):
        decision = alone.bid()
        bids.update(chosen(decision))
        for rendered in decision.rendered:
            alone.post_events(
                ("bill", urls_of(rendered)["bill"].replace("${AUCTION_PRICE}", str(rendered.bid.price_nanos / 1e6)))
            )
        alone.renew()
    assert bids["b"] == 40 - bids["a"] and 9 <= bids["a"] <= 11
    assert alone.writer.ledger.spent("c-a") <= 100_000_000


def test_cap_is_reserved_by_a_bid_and_void_when_the_bid_loses(alone):
    offer(alone, "a", bid_nanos=9_000_000, cap_per_day=2, zone="Pacific/Auckland")
    offer(alone, "b")
    alone.put_list("known", "a", "b")
    alone.renew()
    first = alone.bid(user=USER)
    assert [chosen(first)[0], *(chosen(alone.bid(user=USER))[0] for _ in range(3))] == ["a", "a", "b", "b"]
    assert verdicts(alone, alone.bid(user=USER)) == {"a": Verdict.FREQUENCY_CAP, "b": Verdict.BID}
    url = urls_of(first.rendered[0])["loss"]
    alone.post_events(("loss", url))
    assert [chosen(alone.bid(user=USER))[0] for _ in range(2)] == ["a", "b"]
    alone.clock.wall_us += 12 * 3600 * 1_000_000  # past midnight in Auckland, not in UTC
    assert chosen(alone.bid(user=USER)) == ["a"]


def test_capped_ad_is_not_bid_for_an_unknown_user(alone):
    offer(alone, "a", cap_per_day=2)
    alone.put_list("*", "a")
    alone.renew()
    decision = alone.bid()
    assert (verdicts(alone, decision), decision.reason) == ({"a": Verdict.UNKNOWN_USER_CAP}, NoBid.NO_CANDIDATE)


def test_test_request_needs_no_budget_and_no_cap(alone):
    offer(alone, "a", cap_per_day=1, daily_nanos=1)
    offer(alone, "b", daily_nanos=10**12)
    alone.put_list("*", "a", "b")
    alone.renew()
    assert [chosen(alone.bid(test=1)) for _ in range(3)] == [["a"]] * 3
    alone.clock.wall_us += 2 * SEARCH_US
    alone.renew()
    assert alone.budgets.left_nanos("c-b", alone.clock.wall_us) == 0, "not even a lease for the next auction"
    assert "reserve" not in {name for name, _ in alone.store.calls}


def test_imps_of_a_request_get_different_ads_in_one_currency(alone):
    for name, currency in (("usd", "USD"), ("eur", "EUR"), ("usd2", "USD")):
        offer(alone, name, currency=currency)
    alone.put_list("*", "usd", "eur", "usd2")
    alone.renew()
    decision = alone.bid(imp=[IMP, IMP | {"id": "2"}, IMP | {"id": "3"}], cur=["USD", "EUR"])
    assert chosen(decision) == ["usd", "usd2"]
    assert verdicts(alone, decision, 1)["usd"] == Verdict.DUPLICATE
    assert verdicts(alone, decision, 1)["eur"] == Verdict.RESPONSE_CURRENCY


def test_no_bid_reason_is_the_furthest_that_a_candidate_came(alone):
    offer(alone, "low")
    offer(alone, "broke", bid_nanos=9_000_000, total_nanos=1)
    offer(alone, "capped", bid_nanos=9_000_000, cap_per_day=1)
    for user, ads in (("*", ["low"]), ("u1", ["low", "broke"]), ("u2", ["low", "broke", "capped"])):
        alone.put_list(user, *ads)
    alone.renew()
    imps = [IMP | {"bidfloor": 5.0}]
    alone.bid(user={"id": "u2"}, imp=imps)
    reasons = [alone.bid(user={"id": user}, imp=imps).reason for user in ("", "u1", "u2")]
    assert reasons == [NoBid.BELOW_FLOOR, NoBid.BUDGET_EXHAUSTED, NoBid.DAILY_USER_CAP]
    assert alone.bid(badv=["acme.test"]).reason == NoBid.NO_CANDIDATE


# Prices


def test_price_is_the_bid_times_the_observed_rate_at_any_generator_score(alone):
    """10 of 1,000 impressions were clicked, 100 of another ad's; a CPM ad costs its bid."""
    offer(alone, "cpm")
    offer(alone, "cpc", bid_type="cpc", bid_nanos=10**9)
    offer(alone, "good", bid_type="cpc", bid_nanos=10**9)
    offer(alone, "cpa", bid_type="cpa", bid_nanos=10**9)
    alone.renew({"cpc": (1000, 10, 0), "good": (1000, 100, 0), "cpm": (1000, 900, 0)})
    overall = (110 + 200 * PRIOR_RATES["cpc"]) / 2200
    expected = {
        "cpm": 2_000_000,
        "cpc": int(10**9 * (10 + 200 * overall) / 1200),
        "good": int(10**9 * (100 + 200 * overall) / 1200),
        "cpa": round(10**9 * PRIOR_RATES["cpa"]),
    }
    for log_p in (-0.001, -3.0, -60.0):
        for name, price_nanos in expected.items():
            alone.put_list("known", name, log_p=[log_p])
            (rendered,) = alone.bid(user=USER).rendered
            assert (rendered.bid.ad_id, rendered.bid.price_nanos) == (name, price_nanos)


def test_candidates_are_ranked_by_probability_times_value(alone):
    """exp(-1) x 3 is less than exp(0) x 2, and exp(-1) x 6 is more."""
    offer(alone, "probable")
    offer(alone, "worth3", bid_nanos=3_000_000)
    offer(alone, "worth6", bid_nanos=6_000_000)
    alone.put_list("u3", "probable", "worth3", log_p=[0.0, -1.0])
    alone.put_list("u6", "probable", "worth6", log_p=[0.0, -1.0])
    alone.renew()
    assert [chosen(alone.bid(user={"id": user})) for user in ("u3", "u6")] == [["probable"], ["worth6"]]


# Exploration


def chi_square(counts, expected):
    return sum((counts[name] - count) ** 2 / count for name, count in expected.items())


@pytest.mark.parametrize(
    "limits",
    [{}, {"a0": {"cap_per_day": 1}, "a2": {"cap_per_day": 1}, "a3": {"total_nanos": 1}}],
    ids=["all can be offered", "the best and another are capped, one has no budget"],
)
def test_shares_of_ads_equal_their_propensities(tmp_path, limits):
    """10,000 requests: 2 % explore. An ad's share is its propensity, and weights 1 / propensity are 1 on average."""
    names = [f"a{n}" for n in range(6)]
    requests = 10_000
    with Alone(tmp_path / "state", seed=5, exploration=0.02) as alone:
        for name in names:
            offer(alone, name, **limits.get(name, {}))
        alone.put_list("known", *names)
        alone.renew()
        for name in limits:  # the only impression of the day is reserved
            cap = Cap(f"c-{name}", NOON_US // 86_400_000_000, 1)
            alone.store.reserve("known", [cap], now_us=NOON_US, until_us=2 * NOON_US)
        request = banner_request(user=USER)
        seen: Counter[str] = Counter()
        propensities: dict[str, set[float]] = {}
        for _ in range(requests):
            for rendered in alone.respond(request).rendered:
                seen[rendered.bid.ad_id] += 1
                propensities.setdefault(rendered.bid.ad_id, set()).add(round(rendered.bid.propensity, 12))
    assert all(len(values) == 1 for values in propensities.values()), propensities
    share = {name: values.pop() for name, values in propensities.items()}
    assert set(share) == set(names) - set(limits)
    expected = {name: requests * p for name, p in share.items()}
    expected[""] = requests * (1 - sum(share.values()))  # no bid: the explored ad turned out to be capped
    seen[""] = requests - sum(seen.values())
    if expected[""] < 1e-6:
        assert seen[""] == 0
        del expected[""]
    assert chi_square(seen, expected) < 25, (seen, expected)  # of at most 6 degrees of freedom: 1 in 3,000
    for name, p in share.items():
        assert seen[name] / p / requests == pytest.approx(1, abs=4 * ((1 - p) / p / requests) ** 0.5)


def test_exploration_draws_among_the_best_20(tmp_path):
    with Alone(tmp_path / "state", exploration=0.99) as alone:
        names = [f"a{n:02d}" for n in range(30)]
        for name in names:
            offer(alone, name)
        alone.put_list("*", *names)
        alone.renew()
        assert {chosen(alone.bid())[0] for _ in range(600)} == set(names[:20])


def test_exploration_voids_the_cap_reservation_of_the_best_ad(tmp_path):
    with Alone(tmp_path / "state", exploration=0.9) as alone:
        offer(alone, "best", bid_nanos=9_000_000, cap_per_day=1)
        offer(alone, "other")
        users = [{"id": f"u{n}"} for n in range(30)]
        for user in users:
            alone.put_list(user["id"], "best", "other")
        alone.renew()
        first = [chosen(alone.bid(user=user))[0] for user in users]
        alone.bidder.settings = dataclasses.replace(alone.bidder.settings, exploration=0.0)
        then = [chosen(alone.bid(user=user))[0] for user in users]
    assert set(zip(first, then, strict=True)) == {("best", "other"), ("other", "best")}


def test_exploration_requests_leases_for_all_considered_ads(tmp_path):
    """An explored ad needs a lease, so a request that explores requests leases for all considered ads."""
    with Alone(tmp_path / "state", exploration=0.5) as alone:
        names = [f"a{n}" for n in range(6)]
        for name in names:
            offer(alone, name, daily_nanos=10**12 if name != "a0" else 0)
        alone.put_list("*", *names)
        seen = Counter()
        for _ in range(300):
            alone.renew()
            seen.update(chosen(alone.bid()))
        assert set(seen) == set(names), seen
