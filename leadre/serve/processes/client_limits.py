"""Limits of a worker by client address: requests without an operator's key, forged tokens, and events."""

from __future__ import annotations

from leadre import telemetry
from leadre.clock import Clock
from leadre.serve.manage import attempts
from leadre.serve.processes.bodies import Scope
from leadre.types import EventKind

NOTICES = ("win", "bill", "loss")  # an exchange sends all of its own from a few addresses: they have no limit
# Other events of one address: many users of a mobile network share one.
EVENTS = 2000.0
EVENTS_PER_S = 100.0
FORGED = 100.0  # events with a token that is forged or late
FORGED_PER_S = 1.0


class ClientLimits:
    """The limits of one worker."""

    def __init__(self, clock: Clock) -> None:
        self._failed_logins = attempts.failed_logins(clock)
        self._forged = attempts.AddressLimit(clock, burst=FORGED, per_s=FORGED_PER_S)
        self._events = attempts.AddressLimit(clock, burst=EVENTS, per_s=EVENTS_PER_S)

    def take_event(self, kind: EventKind, scope: Scope) -> bool:
        """Count an event. False if its address has exceeded the limit; addresses that may be a proxy's have none."""
        address = address_of(scope)
        return kind in NOTICES or not attempts.is_public(address) or self._events.take(address)

    def status_of(self, status: int, scope: Scope) -> int:
        """The status of an event, or 429 in place of 403 if its address has sent too many of these."""
        if status == 403 and not self._forged.take(address_of(scope)):
            status = 429
        if status == 429:
            telemetry.LIMITED.labels("event").inc()
        return status

    def take_failed_login(self, scope: Scope) -> bool:
        """Count a request without a valid key. False if its address has exceeded the limit."""
        is_within = self._failed_logins.take(address_of(scope))
        if not is_within:
            telemetry.LIMITED.labels("key").inc()
        return is_within


def address_of(scope: Scope) -> str:
    """The client's address; that of a proxy unless ``network.proxies`` names it."""
    client = scope.get("client")
    return str(client[0]) if client else ""
