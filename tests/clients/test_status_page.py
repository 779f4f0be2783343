"""The status page in Chromium under the locale of a container: charts, phone width, errors on the page, no JavaScript.

One browser start. The page has a made-up history, so that each chart is known to the pixel.
"""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn

from leadre.auction.budget.sums import SpendToday
from leadre.clock import ManualClock
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.ipc.messages import CampaignPacing, ClockReply
from leadre.serve.manage.access import Backend, Lists, Ranker, Spend
from leadre.serve.manage.api import manage_app
from leadre.serve.manage.auth import ApiKeys
from leadre.serve.manage.history import COLUMNS, SAMPLE_S, MetricHistory
from leadre.types import Ad, Campaign
from leadre.units import US_PER_DAY

from ..serve.bidder import until

pytestmark = pytest.mark.slow

NOW_US = 1_772_366_400_000_000
SAMPLES = 60
MISSING = range(20, 30)  # samples that the recorder did not take
BUSY = 45  # the only sample with a request
LONG = "Everything that can be said of a watering can, and then some more of it. " * 6
ARABIC = "أدوات الحديقة بأسعار مخفضة (Alder 6)"


def history():
    """One request in an interval between two idle ones, and idle minutes with a gap of missing samples."""
    kept = [number for number in range(SAMPLES) if number not in MISSING]
    totals_TC = np.zeros((len(kept), len(COLUMNS)))
    totals_TC[1:, COLUMNS.index(("leadre_expected_events_total", "slice", "new"))] = 450
    totals_TC[1:, COLUMNS.index(("leadre_observed_events_total", "slice", "new"))] = 300
    totals_TC[:, COLUMNS.index(("leadre_miscalibrated", "slice", "new"))] = 1
    slow = [("leadre_answer_seconds_bucket", "le", edge) for edge in ("0.5", "1.0", "2.0", "+Inf")]
    for column in (("leadre_answers_total", "outcome", "bid"), *slow):
        totals_TC[[number >= BUSY for number in kept], COLUMNS.index(column)] = 1
    at_s_T = NOW_US / 1e6 + SAMPLE_S * (np.array(kept) - SAMPLES + 1)
    return MetricHistory(at_s_T, totals_TC, 2, "ValueError: a file is cut")


def backend():
    return Backend(
        clock=ManualClock(wall_us=NOW_US),
        erase=lambda user: {},
        export=lambda user: {},
        spend=lambda ids, since, to: [
            Spend(campaign_id=name, day="", impressions=3, clicks=1, conversions=0, charged_nanos=6_000) for name in ids
        ],
        catalogue=lambda: None,
        history=history,
        charged_today=lambda: [
            SpendToday(campaign_id=f"c{number}", charged_nanos=charged, total_charged_nanos=charged)
            for number, charged in enumerate([1_234_567_890_120_000_000, 6_000])
        ],
        pacing=lambda: {
            "c1": CampaignPacing(
                campaign_id="c1",
                participate=0.25,
                multiplier=0.4,
                budget_nanos=1_000_000,
                spent_nanos=400_000,
                planned_nanos=500_000,
                has_forecast=True,
            )
        },
        counts=lambda: {"a0": (123_456_789, 1, 0), "a1": (3, 1, 0)},
        explain=lambda _: None,
        lists=lambda: Lists(version="", made_at_us=0),
        ranker=lambda: Ranker(version="a3f", published_at_us=NOW_US - 3 * US_PER_DAY),
        time_state=lambda: ClockReply(doubt="", why="", now_us=NOW_US, machine_us=NOW_US, certain_us=NOW_US),
        confirm_clock=lambda _by: None,
        used_budget=lambda _: None,
    )


@pytest.fixture(scope="module")
def seen(client, tmp_path_factory):
    """The report of status.mjs."""
    database = ManageDatabase(tmp_path_factory.mktemp("status") / "manage.db")
    store = CampaignStore(database)
    for number, title in enumerate((LONG, ARABIC)):
        of = {"campaign_id": f"c{number}", "advertiser_id": "acme"}
        paced = {"plan": "front_loaded", "daily_nanos": 1_000_000} if number else {}
        store.put_campaign(Campaign(**of, name=title[:200], bid_type="cpm", bid_nanos=2_000, **paced))
        store.put_ad(Ad(**of, ad_id=f"a{number}", object_id="o", title=title, landing_url="https://acme.test/"))
        waits = {
            "landing_url": f"https://acme.test/{'x' * 300}",
            "image_url": "https://acme.test/a.png",
            "review": "pending",
        }
        store.put_ad(Ad(**of, ad_id=f"w{number}", object_id=f"o-w{number}", title=title, description=LONG, **waits))
    _, key = ApiKeys(database).create("the test", 1)
    server = uvicorn.Server(uvicorn.Config(manage_app(database, backend()), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, "started")
        port = server.servers[0].sockets[0].getsockname()[1]
        report = client("status.mjs", "--page", f"http://127.0.0.1:{port}", "--key", key, LANG="C.UTF-8", LC_ALL="")
    finally:
        server.should_exit = True
        thread.join()
        database.close()
    return SimpleNamespace(**json.loads(report))


@pytest.fixture(params=["desktop", "phone"])
def shown(seen, request):
    return getattr(seen, request.param)


def test_language_that_intl_rejects_leaves_the_page_whole(seen, shown):
    assert seen.errors == []
    assert shown["language"] == "en", "Chromium names en-US@posix under LANG=C.UTF-8"
    assert len(shown["charts"]) == 4 and "requests0" in "".join(shown["legend"].split())


def test_content_is_as_wide_as_the_window(shown):
    assert shown["excess"] == 0


def test_single_value_is_visible(shown):
    for chart, colour in (("latency", "--two"), ("fill", "--three")):
        ((left, right),) = shown["charts"][chart][colour]
        assert right - left >= 4, chart


def test_gap_stays_a_gap(shown):
    before, after = shown["charts"]["traffic"]["--three"]
    width = after[1] - before[0]
    gap = (len(MISSING) + 1) / (SAMPLES - 1)
    assert (after[0] - before[1]) / width == pytest.approx(gap, abs=0.02)


def test_failed_samples_are_reported(shown):
    (notice,) = shown["notices"]
    assert "2 samples of the metrics failed" in notice and "ValueError: a file is cut" in notice


def test_error_of_a_script_is_shown_on_the_page(seen):
    assert "SyntaxError" in seen.scriptError


def test_page_without_javascript_has_the_figures(seen):
    for text in ("need JavaScript", "0.000006 USD", "1,234,567,890.12 USD", "123,456,789", ARABIC, "0.002 CPM"):
        assert text in seen.plain, text
    assert "Latency, ms" not in seen.plain, "empty charts are hidden"
    assert "Ads to review" in seen.plain and seen.plain.count("Approve") == seen.plain.count("Reject") == 2


def test_ranker_has_version_age_and_alarm(seen):
    words = " ".join(seen.plain.split())
    assert "current version a3f published 3 d ago" in words
    assert "new 450 300 1.50 alarm" in words
