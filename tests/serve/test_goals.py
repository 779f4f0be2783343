"""Goals of campaigns over HTTP: form, bids of all workers, cost of actions, status page, kill of the writer."""

from __future__ import annotations

import httpx
import pytest

from .bidder import event_urls, until, worker_of

CLICK = 10**9
CPC = {"bid_nanos": 20_000_000, "goal": {"kind": "cpc", "target_nanos": CLICK}}


def pacing(bidder, campaign_id):
    return bidder.manage("GET", f"/campaigns/{campaign_id}/pacing")


def until_goal(bidder, campaign_id, **figures):
    def is_shown():
        goal = pacing(bidder, campaign_id)["goal"]
        return goal is not None and figures.items() <= goal.items()

    until(is_shown, f"{figures} in the pacing of {campaign_id}", lambda: str(pacing(bidder, campaign_id)))
    return pacing(bidder, campaign_id)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"bid_type": "cpc"}, "bid_type = 'cpc'; it must be cpm for a goal of kind 'cpc'"),
        ({"bid_type": "cpa", "goal": {"kind": "roas", "target_return": 4, "conversion_nanos": 9}}, "cpm or cpc"),
        ({"goal": {"kind": "cpc"}}, "goal.target_nanos = 0"),
        ({"goal": {"kind": "cpa", "target_nanos": 5, "target_return": 2.0}}, "goal.target_return = 2.0"),
        ({"goal": {"kind": "roas", "target_return": 0, "conversion_nanos": 9}}, "goal.target_return = 0.0"),
        ({"goal": {"kind": "roas", "target_return": 4}}, "goal.conversion_nanos = 0"),
        ({"goal": {"kind": "roas", "target_return": 1e3, "conversion_nanos": 9}}, "goal.target_return"),
        ({"goal": {"kind": "bid", "target_nanos": 5}}, "goal.target_nanos = 5; it must be 0"),
        ({"goal": {"kind": "clicks"}}, "goal.kind"),
        ({"goal": {"kind": "cpc", "target": 5}}, "goal.target"),
        ({"bid_nanos": 0}, "bid_nanos = 0; it must be above 0"),
    ],
)
def test_goal_that_makes_no_sense_is_refused_by_field(bidder, fields, named):
    body = {"name": "x", "advertiser_id": "x", "bid_type": "cpm"} | CPC | fields
    response = httpx.put(
        f"http://127.0.0.1:{bidder.manage_port}/campaigns/odd",
        json=body,
        headers={"authorization": f"Bearer {bidder.operator}"},
        timeout=30.0,
    )
    assert response.status_code == 422 and named in response.json()["detail"], response.text


def test_target_cost_of_a_click_is_followed_shown_and_kept(bidder):
    """Both workers bid by the target; cost and clicks are counted once, and outlive a kill of the writer."""
    campaign_id, ad_id = bidder.campaign(**CPC)
    assert bidder.manage("GET", f"/campaigns/{campaign_id}")["goal"]["target_nanos"] == CLICK
    bidder.list_for(campaign_id, ad_id)  # waits for all workers
    bids = [bid for _ in range(8) for bid in bidder.fresh(user={"id": campaign_id})]
    assert len(bids) == 8 and len({worker_of(bid) for bid in bids}) >= 1
    assert {bid["price"] for bid in bids} == {bids[0]["price"]}
    price_nanos = round(bids[0]["price"] * 1_000_000)
    for bid in bids[:4]:
        assert bidder.http.get(event_urls(bid)["bill"]).status_code == 200
    for _ in range(2):
        assert bidder.http.get(event_urls(bids[0])["click"]).status_code == 302
    figures = {"cost_nanos": 4 * price_nanos, "actions": 1}
    shown = until_goal(bidder, campaign_id, **figures)
    assert shown["goal"]["realised_nanos"] == 4 * price_nanos and shown["goal"]["target_nanos"] == CLICK
    assert shown["today"] is None and shown["multiplier"] > 0
    bidder.kill("writer")

    def answers():
        response = bidder.http.get(
            f"http://127.0.0.1:{bidder.manage_port}/campaigns/{campaign_id}/pacing",
            headers={"authorization": f"Bearer {bidder.operator}"},
        )
        return response.status_code == 200  # 503 while the writer is away, which `/readyz` may not know yet

    until(answers, "a writer")
    until_goal(bidder, campaign_id, **figures)
    until(lambda: bidder.fresh(user={"id": campaign_id}), "a bid of the new writer's multiplier")


def test_explanation_and_status_page_show_goal_and_reason(bidder):
    campaign_id, ad_id = bidder.campaign(**CPC | {"bid_nanos": 520_000})
    bidder.list_for(campaign_id, ad_id)
    (bid,) = bidder.bids(user={"id": campaign_id}, id=f"goal-{campaign_id}")
    assert bid["price"] == 0.52, "value x 1.1 is above the highest price"
    headers = {"authorization": f"Bearer {bidder.operator}"}
    url = f"{bidder.url}/v1/explain/{bidder.logged_id(f'goal-{campaign_id}')}"
    until(lambda: bidder.http.get(url, headers=headers).status_code == 200, "an explanation")
    candidates = bidder.http.get(url, headers=headers).json()["candidates"]
    (row,) = [candidate for candidate in candidates if candidate["ad_id"] == ad_id]
    assert row["worth_nanos"] == pytest.approx(row["rate"] * CLICK, rel=1e-3) and row["rate_event"] == "click"
    assert (row["price_nanos"], row["multiplier"]) == (520_000, pytest.approx(1.1))
    factors = {"correction": pytest.approx(1.0), "return_dual": 10.0, "budget_dual": 0.0}
    assert row["goal"] == {"kind": "cpc", "target_nanos": CLICK, "most_nanos": 520_000} | factors
    for kind in ("bill", "click"):
        bidder.http.get(event_urls(bid)[kind])
    until_goal(bidder, campaign_id, actions=1)
    with httpx.Client(base_url=f"http://127.0.0.1:{bidder.manage_port}", timeout=30.0) as page:
        page.post("/status/login", data={"key": bidder.operator})
        shown = page.get("/status/campaigns", params={"campaign": campaign_id}).text
    assert "CPC 0.00052 USD of target 1.00" in shown and "1 actions" in shown
