"""Callers of a running bidder: who is admitted, how often, and what a stranger can learn and hold."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

from .bidder import PAGE, Bidder, bid_request, bids_in, event_urls, until

HTTP = httpx.Client(timeout=30.0, limits=httpx.Limits(max_keepalive_connections=0))
NOBODY = "Bearer nobody.secret"


@pytest.fixture(scope="module")
def guarded(work, tmp_path_factory):
    """A bidder of two workers whose file of callers these tests change; the tests are its proxy."""
    flags = ("--workers", "2", "--generate", "false", "--proxies", "127.0.0.1", "--page-network-per-s", "0.01")
    with Bidder(work, tmp_path_factory.mktemp("guarded") / "state", *flags) as running:
        yield running


def add_caller(bidder, name, *flags):
    """The output of `leadre serve caller`, after both workers know the file."""
    command = [sys.executable, "-m", "leadre", "serve", "caller", "--name", name, "--state", str(bidder.state), *flags]
    with read_by_both_workers(bidder):
        done = subprocess.run(command, env=bidder.environment(), capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def read_by_both_workers(bidder):
    """Wait at the end until both workers have read the file of callers that the block changes.

    Statuses alone cannot show it: any number of connections in a row may be accepted by one worker.
    """
    line = "serve: process "
    before = bidder.said().count(line)
    yield
    until(lambda: bidder.said().count(line) >= before + 2, "both workers have read the callers", bidder.said)


def sent(bidder, headers=None, query="", route="bid", **fields):
    """The response over a new connection, which any worker may take."""
    url = f"{bidder.url}/openrtb2/{route}{query}"
    return HTTP.post(url, json=bid_request(**fields), headers=headers or {})


def statuses(bidder, headers=None, count=8, **fields):
    """The statuses of several requests, so that each worker is likely to have one."""
    return {sent(bidder, headers, **fields).status_code for _ in range(count)}


def metric(bidder, line):
    """The value of a line of /metrics; 0 if it is absent."""
    headers = {"authorization": f"Bearer {bidder.operator}"}
    text = bidder.http.get(f"{bidder.url}/metrics", headers=headers).text
    return sum(float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line))


def test_test_request_of_a_stranger_shows_no_ad_of_a_user(bidder):
    """It costs nothing, so a stranger could send one in the name of every user."""
    _, ad_id = bidder.campaign()
    bidder.list_for("watched", ad_id)
    user = {"id": "watched"}
    own = {bids_in(sent(bidder, user=user))[0]["crid"] for _ in range(8)}
    assert own == {ad_id}
    tested = [bids_in(sent(bidder, headers, test=1, user=user)) for headers in ({}, {"authorization": NOBODY}) * 4]
    assert all(bids for bids in tested), "contextual ads"
    assert ad_id not in {bid["crid"] for bids in tested for bid in bids}
    page = bids_in(sent(bidder, {"origin": PAGE}, route="auction", test=1, user=user))
    assert ad_id not in {bid["crid"] for bid in page}
    key = {"authorization": f"Bearer {bidder.operator}"}
    assert bids_in(sent(bidder, key, test=1, user=user))[0]["crid"] == ad_id


def test_page_without_an_origin_is_refused(bidder):
    answer = sent(bidder, route="auction")
    assert answer.status_code == 403 and "not registered" in answer.json()["error"]
    assert statuses(bidder, {"origin": "https://other.example"}, route="auction") == {403}
    assert statuses(bidder, {"origin": PAGE}, route="auction") == {200}


def test_start_without_callers_admits_all_and_prints_it(bidder):
    assert "any program on this machine may request bids, as no caller is configured" in bidder.said()
    assert statuses(bidder, {"authorization": NOBODY}) == {200}


@pytest.mark.slow
def test_only_configured_callers_are_admitted_at_their_rate_and_from_their_addresses(guarded):
    assert statuses(guarded) == {200}, "no caller is configured yet"
    fast = {"authorization": f"Bearer {add_caller(guarded, 'fast')}"}
    assert statuses(guarded) == {401}, "closed to all others"
    assert statuses(guarded, {"authorization": NOBODY}) == {401}
    assert sent(guarded).content == b""
    assert statuses(guarded, fast) == {200}
    slow = add_caller(guarded, "slow", "--requests-per-s", "0.01", "--addresses", "203.0.113.0/24")
    headers = {"authorization": f"Bearer {slow}", "x-forwarded-for": "203.0.113.9"}
    until(lambda: statuses(guarded, headers, 30) == {429}, "both workers have answered as many as they may")
    late = sent(guarded, headers)
    assert late.headers["retry-after"] == "200" and late.content == b""
    assert statuses(guarded, headers | {"x-forwarded-for": "198.51.100.1"}) == {403}
    assert statuses(guarded, fast, 20) == {200}, "each caller has a rate of its own"
    assert sent(guarded, query=f"?caller={fast['authorization'][7:]}").status_code == 200
    operator = {"authorization": f"Bearer {guarded.operator}"}
    assert statuses(guarded, operator) == {200}
    assert metric(guarded, 'leadre_caller_requests_total{caller="slow",outcome="limited"}') > 0
    assert metric(guarded, 'leadre_unknown_callers_total{reason="address",route="bid"}') == 8
    assert metric(guarded, 'leadre_unknown_callers_total{reason="unknown",route="bid"}') > 0


@pytest.mark.slow
def test_certificate_and_network_come_from_the_proxy(guarded):
    add_caller(guarded, "signed", "--token", "false", "--certificates", "ab:12")
    certificate = {"x-client-certificate": "ab:12"}
    assert statuses(guarded, certificate) == {200}
    assert statuses(guarded, {"x-client-certificate": "ab:13"}) == {401}
    page = {"origin": PAGE, "x-forwarded-for": "9.9.9.1"}
    until(
        lambda: statuses(guarded, page, 30, route="auction") == {429}, "both workers have answered as many as they may"
    )
    assert statuses(guarded, page | {"x-forwarded-for": "9.9.9.77"}, route="auction") == {429}
    assert sent(guarded, page | {"x-forwarded-for": "9.9.8.1"}, route="auction").status_code == 200
    assert metric(guarded, 'leadre_limited_total{kind="network"}') > 0


@pytest.mark.slow
def test_token_is_replaced_without_a_gap_and_a_damaged_file_changes_nothing(guarded):
    tokens = [add_caller(guarded, "renewed") for _ in range(3)]
    first, second, third = ({"authorization": f"Bearer {token}"} for token in tokens)
    assert statuses(guarded, third) == {200}
    assert statuses(guarded, second) == {200} and statuses(guarded, first) == {401}
    path = guarded.state / "callers.toml"
    text = path.read_text()
    assert tokens[2] not in text
    path.write_text(text + "[damaged")
    until(lambda: guarded.said().count("the callers stay as they were") >= 2, "both workers have reported it")
    assert statuses(guarded, third) == {200} and statuses(guarded) == {401}
    with read_by_both_workers(guarded):
        path.write_text(text.partition("[renewed]")[0])
    assert statuses(guarded, third) == {401}


@pytest.fixture(scope="module")
def senders(guarded):
    """Headers of an honest caller and of two hostile ones, which show none of their bids."""
    names = ("honest", "hostile-1", "hostile-2")
    return {name: {"authorization": f"Bearer {add_caller(guarded, name)}"} for name in names}


def show(bidder, bid):
    """Report impression and bill of a bid, as a page and its exchange do."""
    urls = event_urls(bid)
    assert [HTTP.get(urls[kind]).status_code for kind in ("imp", "bill")] == [200, 200]


@pytest.mark.slow
def test_frequency_cap_is_not_filled_by_callers_that_show_nothing(guarded, senders):
    _, ad_id = guarded.campaign(cap_per_day=1)
    guarded.list_for("targeted", ad_id)

    def ads(name):
        return [bid["crid"] for bid in bids_in(sent(guarded, senders[name], user={"id": "targeted"}))]

    for name in ("hostile-1", "hostile-2"):
        assert [ads(name) == [ad_id] for _ in range(5)] == [True, False, False, False, False]
    (bid,) = bids_in(sent(guarded, senders["honest"], user={"id": "targeted"}))
    assert bid["crid"] == ad_id
    show(guarded, bid)
    assert [ad_id in ads(name) for name in senders for _ in range(4)] == [False] * 12


@pytest.mark.slow
def test_budget_is_spent_by_the_caller_that_shows_beside_two_that_show_nothing(guarded, senders):
    """The budget pays a hundred impressions, and each of the three sends as often. The hostile ones begin."""
    campaign_id, ad_id = guarded.campaign(bid_nanos=10_000_000, total_nanos=1_000_000_000)
    guarded.list_for("buyer", ad_id)
    user = {"id": "buyer"}
    shown = 0

    def round_of_requests():
        nonlocal shown
        for name in ("hostile-1", "hostile-2", "honest"):
            bids = bids_in(sent(guarded, senders[name], user=user))
            if name == "honest" and bids and bids[0]["crid"] == ad_id:
                show(guarded, bids[0])
                shown += 1
        return shown >= 60

    until(round_of_requests, "60 impressions of the honest caller", lambda: f"{shown} were shown")
    assert guarded.report(campaign_id)["charged_nanos"] == shown * 10_000_000


@pytest.mark.slow
def test_caller_has_as_many_open_bids_as_it_may_have(guarded):
    few = {"authorization": f"Bearer {add_caller(guarded, 'few', '--max-open-bids', '4')}"}
    until(lambda: statuses(guarded, few, 30) == {204}, "both workers have as many as they may have")
    assert metric(guarded, 'leadre_no_bids_total{reason="too_many_open"}') > 0
    until(lambda: metric(guarded, 'leadre_open_bids{caller="few"}') == 4, "the metric")
    no_bid = sent(guarded, few, "?pretty=1")
    assert no_bid.json()["nbr"] == 507
