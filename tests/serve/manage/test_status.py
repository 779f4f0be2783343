"""The status page of a running bidder, through HTTP as an operator's browser loads it."""

from __future__ import annotations

import contextlib
import functools
import re
import signal
from html.parser import HTMLParser
from types import SimpleNamespace

import httpx
import pytest

from leadre.serve.manage import sessions, status
from leadre.serve.manage.auth import ApiKeys
from leadre.serve.manage.sessions import LASTS_US, MAX_SESSIONS, Sessions, is_own_form

from ..bidder import event_urls, until

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
OPEN = {"/status/login", "/status/assets/{name}"}
FRAGMENT = {"HX-Request": "true"}


class Browser:
    """A browser with cookies and without scripts; it logs in if it has a key."""

    def __init__(self, bidder, key=""):
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{bidder.manage_port}", timeout=30.0)
        self.login = self.http.post("/status/login", data={"key": key}) if key else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def get(self, path="/status", **query):
        response = self.http.get(path, params=query)
        assert response.status_code == 200, response.text
        return response.text

    @functools.cached_property
    def csrf(self):
        return re.search(r'name="csrf" value="([^"]+)"', self.get())[1]

    def act(self, fragment, action, name, **headers):
        return self.http.post(
            f"/status/{fragment}", data={"csrf": self.csrf, "id": name, "action": action}, headers=headers
        )


@pytest.fixture
def browse(bidder):
    """Opens browsers, with a key or without; closes them after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda key="": stack.enter_context(Browser(bidder, key))


@pytest.fixture
def page(bidder, browse):
    return browse(bidder.operator)


def figure(html, name):
    return re.search(rf"<dt>{name}</dt><dd>([^<]+)", html)[1].strip()


def counted(html, name):
    """The count of a row in the tables of shares."""
    match = re.search(rf'<th scope="row">{name}</th>.*?<td class="number">([\d,]+)</td>', html)
    return int(match[1].replace(",", "")) if match else 0


def test_page_shows_traffic(bidder, page):
    _, ad_id = bidder.campaign(bid_nanos=5_000_000)
    bidder.list_for("seen", ad_id)
    before = page.get("/status/now")
    bids = [bid for _ in range(20) for bid in bidder.bids(user={"id": "seen"})]
    assert len(bids) == 20
    bidder.ask(user={"id": "seen"}, regs={"gdpr": 1})  # without any consent
    increases = {"bid": 20, "no bid": 1, "no consent": 1, "stored": 20}
    expected = {name: counted(before, name) + increase for name, increase in increases.items()}

    def shown():
        after = page.get("/status/now")
        return {name: counted(after, name) for name in expected}

    until(lambda: shown() == expected, "the counts of the last request, which follow its answer")
    until(lambda: figure(page.get("/status/now"), "Requests per second")[0].isdigit(), "a second of history")
    after = page.get("/status/now")
    assert float(figure(after, "Requests per second")) > 0 and "%" in figure(after, "Fill")
    assert float(figure(after, "Latency p99")) > 0
    until(lambda: "all parts available" in page.get("/status/now"), "all parts available")


def test_page_shows_spend_ads_and_an_explained_request(bidder, page):
    pays = {"bid_type": "cpc", "bid_nanos": 2_000_000_000, "daily_nanos": 8_000_000_000}
    campaign_id, ad_id = bidder.campaign(name="Spends", **pays)
    bidder.list_for("spends", ad_id)
    until(lambda: bidder.bids(user={"id": "spends"}), "a lease of the budget")
    (bid,) = bidder.bids(user={"id": "spends"}, id="explained")
    for kind, status_code in (("imp", 200), ("click", 302)):
        assert bidder.http.get(event_urls(bid)[kind]).status_code == status_code
    row = until_row(page, "/status/campaigns", campaign=campaign_id)
    assert "2.00 USD" in row and "25.0 % of 8.00 a day" in row and "Spends" in row
    assert re.search(r'data-label="Imp.">1<', row)
    assert re.search(r'data-label="Imp.">1<', page.get("/status/ads", ad=ad_id))
    explanation = until_row(page, "/status/request", "explained", id="explained")
    assert ad_id in explanation and "stored" in explanation and '<td class="won">bid</td>' in explanation
    bidder.bids(user={"id": "spends"}, id="the-newest")
    until_row(page, "/status/request", bidder.logged_id("the-newest"))  # without an ID
    assert "not among the recent requests" in page.get("/status/request", id="unknown")
    assert "No campaign has the ID none" in page.get("/status/campaigns", campaign="none")


def until_row(page, path, text="2.00 USD", **query):
    """The page, as soon as it contains ``text``."""
    until(lambda: text in page.get(path, **query), f"{text} at {path}")
    return page.get(path, **query)


def test_page_reports_a_stalled_writer_and_shows_the_rest(bidder, page):
    campaign_id, ad_id = bidder.campaign(name="Still here")
    assert page.csrf
    bidder.signal("writer", signal.SIGSTOP)
    try:
        until(lambda: "away: writer" in page.get("/status/now"), "writer reported away")
        campaigns = page.get("/status/campaigns", campaign=campaign_id)
        assert "writer.sock: no reply" in campaigns and "Still here" in campaigns
        assert page.get().count("writer.sock: no reply") == 3  # campaigns, ads, request
        assert page.act("ads", "pause", ad_id, **FRAGMENT).status_code == 200
    finally:
        bidder.signal("writer", signal.SIGCONT)
    until(lambda: "all parts available" in page.get("/status/now"), "back")


@pytest.mark.parametrize("fragment", ["ads", "campaigns"])
def test_pause_on_the_page_takes_the_ad_out_of_all_bids(bidder, page, fragment):
    campaign_id, first = bidder.campaign(bid_nanos=9_000_000)
    _, second = bidder.campaign()
    user_id = f"paused-{fragment}"
    name = {"ads": first, "campaigns": campaign_id}[fragment]
    bidder.list_for(user_id, first, second)
    response = page.act(fragment, "pause", name)
    assert (response.status_code, response.headers["location"]) == (303, "/status")
    until(lambda: not bidder.bidding(user_id, first), "paused")
    assert {bid["crid"] for _ in range(12) for bid in bidder.fresh(user={"id": user_id})} == {second}
    response = page.act(fragment, "resume", name, **FRAGMENT)
    assert response.status_code == 200 and "<html" not in response.text  # the fragment alone
    until(lambda: bidder.bidding(user_id, first), "resumed")
    bidder.manage("POST", f"/{fragment}/{name}/end")
    response = page.act(fragment, "resume", name, **FRAGMENT)
    assert response.status_code == 409 and "ended" in response.text
    assert page.act(fragment, "pause", "none", **FRAGMENT).status_code == 409
    assert page.act(fragment, "end", name).status_code == 409


def test_texts_of_advertisers_are_escaped(bidder, page):
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
    """Tags of a page: (tag, names of its attributes)."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name for name, _ in attrs}))


def routes():
    return [(method, route.path) for route in status.router.routes for method in sorted(route.methods)]


def test_page_without_a_session_has_no_data(bidder, browse):
    anonymous = browse()
    wrong = browse(bidder.operator[:-1] + "?")
    account = bidder.manage("POST", "/keys", {"name": "An advertiser", "advertiser_id": "acme"})["key"]
    advertiser = browse(account)
    assert wrong.login.status_code == advertiser.login.status_code == 403
    assert not wrong.http.cookies and not advertiser.http.cookies
    checked = 0
    for method, path in routes():
        if path in OPEN:
            continue
        for browser in (anonymous, wrong, advertiser):
            for key in ({}, {"Authorization": f"Bearer {account}"}, {"Cookie": f"{status.COOKIE}=x"}):
                response = browser.http.request(method, path, headers=key | FRAGMENT)
                assert response.status_code == 401 and "progress" not in response.text, (method, path)
                assert response.headers["HX-Refresh"] == "true"
                checked += 1
    assert checked == 9 * 11, "a route was added or removed"


def test_change_requires_the_csrf_token_of_the_session(bidder, browse, page):
    _, ad_id = bidder.campaign()
    for csrf in ("", "x", browse(bidder.operator).csrf):
        for path in ("/status/ads", "/status/campaigns", "/status/logout"):
            response = page.http.post(path, data={"csrf": csrf, "id": ad_id, "action": "pause"})
            assert response.status_code == 403, path
    assert bidder.manage("GET", f"/ads/{ad_id}")["status"] == "active"


def test_session_cookie_is_unreachable_for_scripts_and_other_sites(bidder, browse):
    browser = browse(bidder.operator)
    assert {"HttpOnly", "SameSite=strict"} <= set(browser.login.headers["set-cookie"].split("; "))
    assert bidder.operator not in browser.get()
    response = browser.http.get("/status")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert response.headers["cache-control"] == "no-store"
    tags = Tags(response.text)
    assert ("script", {"src", "defer"}) in tags.tags and len(tags.tags) > 100
    for tag, attributes in tags.tags:  # the policy forbids them
        assert tag != "style" and not any(name == "style" or name.startswith("on") for name in attributes)
        assert tag != "script" or "src" in attributes
    for address in re.findall(r'(?:src|href)="(/[^"]+)"', response.text):
        assert httpx.get(f"http://127.0.0.1:{bidder.manage_port}{address}").is_success, address
    session = dict(browser.http.cookies)
    assert browser.http.post("/status/logout", data={"csrf": browser.csrf}).status_code == 303
    assert httpx.get(f"http://127.0.0.1:{bidder.manage_port}/", cookies=session).status_code == 401


def test_revoked_key_ends_its_session(bidder, browse):
    created = bidder.manage("POST", "/keys", {"name": "Ann"})
    browser = browse(created["key"])
    assert "Spend today" in browser.get("/")
    bidder.manage("DELETE", f"/keys/{created['about']['key_id']}")
    assert browser.http.get("/").status_code == 401


def test_sessions_end_and_are_bounded(manage_database):
    keys = ApiKeys(manage_database)
    _, key = keys.create("Ann", 1)
    open_sessions = Sessions(keys)
    first = open_sessions.start(key, 1)
    assert open_sessions.find(first, LASTS_US) is not None and open_sessions.find(first, LASTS_US + 1) is None
    later = [open_sessions.start(key, 2) for _ in range(MAX_SESSIONS)]
    assert open_sessions.find(first, 3) is None and open_sessions.find(later[0], 3) is not None
    assert not is_own_form(SimpleNamespace(csrf="a"), "\ud800")
    assert sessions.SECRET_BYTES >= 16


@pytest.mark.parametrize("content", ["&" * 50_000, "key=1&" * 50, "%ff", "key=" + "a." * 50_000, "\0"])
def test_login_with_an_odd_form_is_refused_and_leaves_no_traceback(bidder, browse, content):
    answer = browse().http.post(
        "/status/login", content=content, headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert answer.status_code in (400, 403)
    assert "Traceback" not in bidder.said()
