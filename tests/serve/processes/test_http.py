"""Pages of the bid port for people: the index of its routes, and 404s that lead to it."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from leadre import __version__
from leadre.clock import ManualClock
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Timing
from leadre.serve.processes.http import App
from leadre.serve.processes.worker import Worker
from leadre.serve.settings import Settings

MANAGEMENT = "http://127.0.0.1:8081/"


@pytest.fixture
def app(tmp_path):
    """The app of a worker that has not started: its pages need no state."""
    settings = Settings(public_url="http://127.0.0.1:8080")
    paths = StatePaths(folder=tmp_path, store=f"lmdb:{tmp_path / 'lists'}")
    worker = Worker(paths, settings, Timing(), has_model=False, clock=ManualClock())
    return App(worker, max_wait_s=1.0, management_url=MANAGEMENT)


def send(app, method, path, **headers):
    async def request():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bidder") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(request())


def test_index_lists_every_route_for_people_and_for_programs(app):
    page = send(app, "GET", "/", accept="text/html,application/json;q=0.9")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert f'href="{MANAGEMENT}docs"' in page.text and __version__ in page.text
    described = send(app, "GET", "/", accept="application/json").json()
    listed = {(route["method"], route["path"]) for route in described["routes"]}
    assert all(f"<code>{method} {path}</code>" in page.text for method, path in listed)
    prefixes = {(method, path.rstrip("ADEIKN")) for method, path in listed if path.endswith(("/ID", "/KIND"))}
    exact = {route for route in listed if not route[1].endswith(("/ID", "/KIND"))}
    assert (exact, prefixes) == (set(app.exact), set(app.prefixes))


def test_index_for_other_machines_has_no_address_of_the_management_port(app):
    page = send(App(app.worker, max_wait_s=1.0, management_url=""), "GET", "/").text
    assert "8081" not in page and 'href="/healthz"' in page


def test_head_of_the_index_has_the_headers_of_its_page(app):
    head = send(app, "HEAD", "/")
    assert (head.status_code, head.headers) == (200, send(app, "GET", "/").headers)


@pytest.mark.parametrize(
    ("method", "path", "has_body"),
    [
        ("GET", "/nothing", True),
        ("POST", "/v1/nothing", True),
        ("GET", "/docs", True),
        ("GET", "/openrtb2/bid", False),
        ("POST", "/openrtb2/nothing", False),
        ("GET", "/e/nothing", False),
    ],
)
def test_unknown_route_names_the_index_except_beside_bids_and_events(app, method, path, has_body):
    answer = send(app, method, path)
    assert answer.status_code == 404 and ("GET / lists the routes" in answer.text) == has_body
    assert bool(answer.content) == has_body
