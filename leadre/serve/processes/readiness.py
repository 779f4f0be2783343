"""Announces on stderr when a starting bidder is ready, and the addresses to use then."""

from __future__ import annotations

import http.client
import json
import threading

from leadre import progress
from leadre.clock import Clock
from leadre.serve.plan import Plan

POLL_S = 0.1
TIMEOUT_S = 2.0  # of one request to a process that may not accept it yet


def start(plan: Plan, bid_port: int, manage_port: int, clock: Clock) -> threading.Event:
    """Watch the bidder in a thread until all its parts are ready, or the returned event is set."""
    stopped = threading.Event()
    arguments = (plan, bid_port, manage_port, clock, stopped)
    threading.Thread(target=_watch, args=arguments, name="leadre-readiness", daemon=True).start()
    return stopped


def _watch(plan: Plan, bid_port: int, manage_port: int, clock: Clock, stopped: threading.Event) -> None:
    started_s = clock.monotonic_s()
    host = reachable(plan.host)
    waits_for_model = plan.model is not None
    while not stopped.wait(POLL_S):
        state = _get(host, bid_port, "/readyz")
        if state is None or "writer" in state["away"] or _get(host, manage_port, "/health") is None:
            continue
        progress.say(f"serve: ready after {clock.monotonic_s() - started_s:.0f} s")
        progress.say(
            f"serve:   bid requests   http://{host}:{bid_port}/openrtb2/bid; all routes: http://{host}:{bid_port}/"
        )
        progress.say(
            f"serve:   status page    http://{host}:{manage_port}/; API reference: http://{host}:{manage_port}/docs"
        )
        progress.say("serve:   Ctrl+C stops the bidder; requests in progress are answered")
        break
    while waits_for_model and not stopped.wait(POLL_S):
        state = _get(host, bid_port, "/readyz")
        if state is not None and "model" not in state["away"]:
            return progress.say("serve: the language model is loaded: known users without a list get generated ads")


def reachable(host: str) -> str:
    """The host of a URL on this machine for the address that a server listens on."""
    local = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{local}]" if ":" in local else local


def _get(host: str, port: int, path: str) -> dict[str, list[str]] | None:
    """The JSON of a GET; None while the server gives none."""
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        answer: dict[str, list[str]] = json.loads(response.read())
        return answer if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
