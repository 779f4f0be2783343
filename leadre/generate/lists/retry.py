"""Retry calls to a store that is down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from leadre import progress
from leadre.errors import StoreDown

RETRY_S = 0.25

T = TypeVar("T")


def retry(call: Callable[[], T], wait_s: float) -> T:
    """Repeat ``call`` until the store answers; raise the StoreDown after ``wait_s`` seconds."""
    until_s = time.monotonic() + wait_s
    is_reported = False
    while True:
        try:
            return call()
        except StoreDown as error:
            if time.monotonic() > until_s:
                raise
            if not is_reported:
                progress.say(f"generate: {error}; trying again for {wait_s:.0f} s")
                is_reported = True
            time.sleep(RETRY_S)
