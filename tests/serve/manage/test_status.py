"""The status page as an operator's browser has it, on a bidder that runs."""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import httpx
import pytest

from leadre.serve.manage import sessions, status
from leadre.serve.manage.auth import ApiKeys
from leadre.serve.manage.sessions import LASTS_US, MAX_SESSIONS, Sessions, is_ours

from ..bidder import event_urls, until

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
OPEN = {"/status/login", "/status/assets/{name}"}
PARTIAL = {"HX-Request": "true"}


class Browser:
    """Somebody at the page, with cookies and no scripts."""

    def __init__(self, bidder, key=""):
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{bidder.manage_port}", timeout=30.0)
        self.answer = self.http.post("/status/login", data={"key": key}) if key else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def get(self, path="/status", **query):
        answer = self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.text

    @functools.cached_property
    def csrf(self):
        return re.search(r'name="csrf" value="([^"]+)"', self.get())[1]

    def act(self, piece, action, name, **headers):
        return self.http.post(
            f"/status/{piece}", data={"csrf": self.csrf, "id": name, "action": action}, headers=headers
        )


@pytest.fixture
def browse(bidder):
    """A browser of whoever has a key, closed in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda key="": stack.enter_context(Browser(bidder, key))


@pytest.fixture
def page(bidder, browse):
    return browse(bidder.operator)


def figure(html, name):
    return re.search(rf"<dt>{name}</dt><dd>([^<]+)", html)[1].strip()


def counted(html, name):
    """The number beside a word in the tables of shares."""
    found = re.search(rf'<th scope="row">{name}</th>.*?<td class="number">([\d,]+)</td>', html)
    return int(found[1].replace(",", "")) if found else 0


def test_traffic_shows(bidder, page):
    _, ad_id = bidder.campaign(bid_nanos=5_000_000)
    bidder.list_for("seen", ad_id)
    before = page.get("/status/now")
    shown = [bid for _ in range(20) for bid in bidder.bids(user={"id": "seen"})]
    assert len(shown) == 20
    bidder.ask(user={"id": "seen"}, regs={"gdpr": 1})  # who grants nothing
    after = page.get("/status/now")
    for name, grown in (("bid", 20), ("no bid", 1), ("no consent", 1), ("stored", 20)):
        assert counted(after, name) == counted(before, name) + grown, name
    assert float(figure(after, "Requests a second")) > 0 and "%" in figure(after, "Fill")
    assert float(figure(after, "Latency p99")) > 0
    until(lambda: "all parts answer" in page.get("/status/now"), "all parts there")


def test_spend_ads_and_a_request_show(bidder, page):
    pays = {"bid_type": "cpc", "bid_nanos": 2_000_000_000, "daily_nanos": 8_000_000_000}
    campaign_id, ad_id = bidder.campaign(name="Spends", **pays)
    bidder.list_for("spends", ad_id)
    until(lambda: bidder.bids(user={"id": "spends"}), "a lease of the budget")
    (bid,) = bidder.bids(user={"id": "spends"}, id="asked-by-the-test")
    for kind, status_code in (("imp", 200), ("click", 302)):
        assert bidder.http.get(event_urls(bid)[kind]).status_code == status_code
    row = until_row(page, "/status/campaigns", campaign=campaign_id)
    assert "2.00 USD" in row and "25.0 % of 8.00 a day" in row and "Spends" in row
    assert re.search(r'data-label="Imp.">1<', row)
    assert re.search(r'data-label="Imp.">1<', page.get("/status/ads", ad=ad_id))
    told = until_row(page, "/status/request", "asked-by-the-test", id="asked-by-the-test")
    assert ad_id in told and "stored" in told and '<td class="won">bid</td>' in told
    bidder.bids(user={"id": "spends"}, id="the-newest")
    until_row(page, "/status/request", "the-newest")  # without an ID
    assert "not among the last requests" in page.get("/status/request", id="nobody's")
    assert "No campaign has the ID none" in page.get("/status/campaigns", campaign="none")


def until_row(page, path, wanted="2.00 USD", **query):
    until(lambda: wanted in page.get(path, **query), f"{wanted} at {path}")
    return page.get(path, **query)


def test_while_the_writer_stalls_the_page_says_so_and_shows_the_rest(bidder, page):
    campaign_id, ad_id = bidder.campaign(name="Still here")
    assert page.csrf
    bidder.signal("writer", signal.SIGSTOP)
    try:
        until(lambda: "away: writer" in page.get("/status/now"), "said to be away")
        campaigns = page.get("/status/campaigns", campaign=campaign_id)
        assert "writer.sock: no answer" in campaigns and "Still here" in campaigns
        start_s = time.monotonic()
        assert page.get().count("writer.sock: no answer") == 3  # campaigns, ads, request
        assert time.monotonic() - start_s < 8, "it waits for the writer once, not for each piece"
        assert page.act("ads", "pause", ad_id, **PARTIAL).status_code == 200
    finally:
        bidder.signal("writer", signal.SIGCONT)
    until(lambda: "all parts answer" in page.get("/status/now"), "back")


@pytest.mark.parametrize("piece", ["ads", "campaigns"])
def test_a_pause_through_the_page_takes_the_ad_out_of_all_bids_within_a_second(bidder, page, piece):
    (campaign_id, first), (_, second) = bidder.campaign(bid_nanos=9_000_000), bidder.campaign()
    user_id, name = f"paused-{piece}", {"ads": first, "campaigns": campaign_id}[piece]
    bidder.list_for(user_id, first, second)
    answer = page.act(piece, "pause", name)
    assert (answer.status_code, answer.headers["location"]) == (303, "/status")
    time.sleep(1.0)
    assert {bid["crid"] for _ in range(12) for bid in bidder.fresh(user={"id": user_id})} == {second}
    answer = page.act(piece, "resume", name, **PARTIAL)
    assert answer.status_code == 200 and "<html" not in answer.text  # the piece alone
    until(lambda: bidder.bidding(user_id, first), "resumed", within_s=5)
    bidder.manage("POST", f"/{piece}/{name}/end")
    answer = page.act(piece, "resume", name, **PARTIAL)
    assert answer.status_code == 409 and "ended" in answer.text
    assert page.act(piece, "pause", "none", **PARTIAL).status_code == 409
    assert page.act(piece, "end", name).status_code == 409


def test_what_an_advertiser_wrote_is_text(bidder, page):
    campaign_id, ad_id = bidder.campaign(name=HOSTILE)
    ad = {"campaign_id": campaign_id, "title": HOSTILE, "brand": HOSTILE, "landing_url": "https://x.example/"}
    bidder.manage("PUT", f"/ads/{ad_id}", ad)
    bidder.list_for("hostile", ad_id)
    bidder.bids(user={"id": "hostile"}, id=HOSTILE)
    texts = [
        page.get("/status/campaigns", campaign=campaign_id),
        page.get("/status/ads", ad=ad_id),
        until_row(page, "/status/request", ad_id, id=HOSTILE),
        page.get("/status/ads", ad=HOSTILE),
        page.get("/status", campaign=HOSTILE, ad=HOSTILE, id=HOSTILE),
    ]
    for text in texts:
        assert "&lt;script&gt;" in text
        assert "<script>alert" not in text and "<img" not in text


class Tags(HTMLParser):
    """(tag, names of its attributes) of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, {name for name, _ in attrs}))


def routes():
    return [(method, route.path) for route in status.router.routes for method in sorted(route.methods)]


def test_without_a_session_there_is_no_data(bidder, browse):
    nobody, wrong = browse(), browse(bidder.operator[:-1] + "?")
    account = bidder.manage("POST", "/keys", {"name": "An advertiser", "advertiser_id": "acme"})["key"]
    advertiser = browse(account)
    assert wrong.answer.status_code == advertiser.answer.status_code == 403
    assert not wrong.http.cookies and not advertiser.http.cookies
    swept = 0
    for method, path in routes():
        if path in OPEN:
            continue
        for browser in (nobody, wrong, advertiser):
            for key in ({}, {"Authorization": f"Bearer {account}"}, {"Cookie": f"{status.COOKIE}=x"}):
                answer = browser.http.request(method, path, headers=key | PARTIAL)
                assert answer.status_code == 401 and "progress" not in answer.text, (method, path)
                assert answer.headers["HX-Refresh"] == "true"
                swept += 1
    assert swept == 9 * 9, "a route came or went"


def test_a_change_wants_what_only_our_page_knows(bidder, browse, page):
    _, ad_id = bidder.campaign()
    for csrf in ("", "x", browse(bidder.operator).csrf):
        for path in ("/status/ads", "/status/campaigns", "/status/logout"):
            answer = page.http.post(path, data={"csrf": csrf, "id": ad_id, "action": "pause"})
            assert answer.status_code == 403, path
    assert bidder.manage("GET", f"/ads/{ad_id}")["status"] == "active"


def test_the_session_is_out_of_reach_of_scripts_and_other_sites(bidder, browse):
    browser = browse(bidder.operator)
    assert {"HttpOnly", "SameSite=strict"} <= set(browser.answer.headers["set-cookie"].split("; "))
    assert bidder.operator not in browser.get()
    answer = browser.http.get("/status")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    tags = Tags(answer.text)
    assert ("script", {"src", "defer"}) in tags.found and len(tags.found) > 100
    for tag, attributes in tags.found:  # the browser would refuse them
        assert tag != "style" and not any(name == "style" or name.startswith("on") for name in attributes)
        assert tag != "script" or "src" in attributes
    for address in re.findall(r'(?:src|href)="(/[^"]+)"', answer.text):
        assert httpx.get(f"http://127.0.0.1:{bidder.manage_port}{address}").is_success, address
    session = dict(browser.http.cookies)
    assert browser.http.post("/status/logout", data={"csrf": browser.csrf}).status_code == 303
    assert httpx.get(f"http://127.0.0.1:{bidder.manage_port}/", cookies=session).status_code == 401


def test_a_revoked_key_ends_its_session(bidder, browse):
    made = bidder.manage("POST", "/keys", {"name": "Ann"})
    browser = browse(made["key"])
    assert "Spend today" in browser.get("/")
    bidder.manage("DELETE", f"/keys/{made['about']['key_id']}")
    assert browser.http.get("/").status_code == 401


def test_sessions_end_and_are_few(desk):
    keys = ApiKeys(desk)
    _, key = keys.create("Ann", 1)
    at = Sessions(keys)
    first = at.start(key, 1)
    assert at.find(first, LASTS_US) is not None and at.find(first, LASTS_US + 1) is None
    later = [at.start(key, 2) for _ in range(MAX_SESSIONS)]
    assert at.find(first, 3) is None and at.find(later[0], 3) is not None
    assert not is_ours(SimpleNamespace(csrf="a"), "\ud800")
    assert sessions.SECRET_BYTES >= 16
