"""Verdicts of candidates that pass every filter and are not bid."""

from __future__ import annotations

from leadre.types import Verdict

from ..alone import IMP, Alone, chosen, verdicts
from .test_respond import USER, offer


def test_ads_ranked_below_the_winner_are_outranked_and_dropped_ones_keep_their_reason(tmp_path):
    """Ranked d, a, b, c: d has no lease yet, a wins; c is below the floor, and b lacks nothing but rank."""
    with Alone(tmp_path / "state") as alone:
        offer(alone, "a", bid_nanos=3_000_000)
        offer(alone, "b")
        offer(alone, "c", bid_nanos=1_000_000)
        offer(alone, "d", bid_nanos=9_000_000, total_nanos=10**9)
        offer(alone, "e", total_nanos=10**9)
        alone.put_list("known", "a", "b", "c", "d", "e")
        alone.renew()
        decision = alone.bid(user=USER, imp=[IMP | {"bidfloor": 1.5}])
        assert verdicts(alone, decision) == {
            "a": Verdict.BID,
            "b": Verdict.OUTRANKED,
            "c": Verdict.BELOW_FLOOR,
            "d": Verdict.NO_BUDGET,
            "e": Verdict.NO_BUDGET,
        }


def test_exploration_leaves_better_ads_not_selected_and_outranks_the_rest(tmp_path):
    with Alone(tmp_path / "state", exploration=0.99) as alone:
        names = [f"a{n}" for n in range(5)]
        for name in names:
            offer(alone, name)
        alone.put_list("*", *names)
        alone.renew()
        winners = set()
        for _ in range(60):
            decision = alone.bid()
            (winner,) = chosen(decision)
            winners.add(winner)
            verdict_of = verdicts(alone, decision)
            for name in names:
                below = Verdict.OUTRANKED if name > winner else Verdict.NOT_SELECTED
                assert verdict_of[name] == (Verdict.BID if name == winner else below)
        assert winners == set(names)


def test_currency_that_the_request_names_first_ranks_first(tmp_path):
    """A campaign in yen has a hundred times the nanos of one in dollars, and no more value."""
    with Alone(tmp_path / "state") as alone:
        offer(alone, "usd")
        offer(alone, "jpy", currency="JPY", bid_nanos=200_000_000)
        offer(alone, "jpy2", currency="JPY", bid_nanos=300_000_000)
        alone.put_list("*", "usd", "jpy", "jpy2", log_p=[-1.0, -1.0, -1.0])
        alone.renew()
        assert chosen(alone.bid(cur=["USD", "JPY"])) == ["usd"]
        assert chosen(alone.bid(cur=["JPY", "USD"])) == ["jpy2"]
