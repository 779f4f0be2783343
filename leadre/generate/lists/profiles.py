"""Write what the store holds besides users' lists: the popular list, for users without one, and recent profiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from leadre.clock import Clock, SystemClock
from leadre.data.histories import AD
from leadre.generate.channels import popularity
from leadre.generate.lists.retry import retry
from leadre.store import erased
from leadre.store.contract import MAX_RECENT, Profile, ProfileEvent, Store, StoredList

if TYPE_CHECKING:
    from leadre.data.histories import Logs

PAGE = 1000


def popular(
    logs: Logs, now_us: int, ads: NDArray[np.int32], version: str, top: int, *, clock: Clock | None = None
) -> StoredList:
    """The ``top`` of ``ads`` by conversions before ``now_us``, with the logarithms of their shares of all conversions.

    Every ad has one conversion more than it had, so that new ads have a share too. ``clock`` dates the list.
    """
    count_A = popularity.count_conversions(logs, now_us)[ads].astype(np.float64) + 1
    best = np.argsort(-count_A, kind="stable")[:top]
    log_p = np.log(count_A[best] / count_A.sum())
    ad_ids = logs.ads["ad_id"].gather(ads[best]).to_list()
    return StoredList(version, (clock or SystemClock()).now_us(), tuple(ad_ids), tuple(log_p.tolist()))


def profiles(logs: Logs, now_us: int, users: NDArray[np.int64]) -> Iterator[Profile]:
    """The last events of each of ``users`` before ``now_us``, as a profile that serving extends; no segments.

    The columns of the users table are its attributes, numbers as they are and other values as text.
    """
    facts = logs.users.drop("user_id")
    user_ids = logs.users["user_id"].to_list()
    object_ids = logs.objects["object_id"].to_list()
    ends = logs.ends_before(users.astype(np.int32), np.full(len(users), now_us, np.int64))
    for user, end in zip(users.tolist(), ends.tolist(), strict=True):
        rows = slice(max(int(logs.event_offsets[user]), end - MAX_RECENT), end)
        columns = (logs.object_E, logs.at_us_E, logs.domain_E, logs.value_nanos_E)
        events = zip(*(column[rows].tolist() for column in columns), strict=True)
        recent = tuple(
            ProfileEvent(object_ids[o], at_us, "ad" if domain == AD else "content", value_nanos)
            for o, at_us, domain, value_nanos in events
        )
        named = facts.row(user, named=True) if facts.width else {}
        attributes = {name: _plain(value) for name, value in named.items() if value is not None}
        yield Profile(user_ids[user], recent, (), now_us, attributes=attributes)


def _plain(value: object) -> str | float:
    """A number, or the text of anything else, as a ranker's vocabulary has it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return cast(float, value) if is_number else str(value)


def remember(
    store: Store, profiles: Iterable[Profile], erased_file: Path, wait_s: float, *, clock: Clock | None = None
) -> None:
    """Merge profiles of a log into the store. Later events that serving has added stay, and segments too.

    ``clock`` dates the reading of the log. Users in the file of `leadre.store.erased` are left out.
    """
    remaining = iter(profiles)
    while page := list(islice(remaining, PAGE)):
        retry(partial(_remember, store, page, erased_file, clock or SystemClock()), wait_s)


def _remember(store: Store, page: Sequence[Profile], erased_file: Path, clock: Clock) -> None:
    merged = []
    read_at_us = clock.now_us()
    with erased.locked(erased_file) as is_erased:
        for new in page:
            if is_erased(new.user_id):
                continue
            old = store.read_profile(new.user_id) or Profile(new.user_id)
            added = tuple(event for event in old.recent if event.at_us >= new.updated_at_us)
            updated_at_us = max(new.updated_at_us, old.updated_at_us)
            recent = (*new.recent, *added)
            merged.append(
                Profile(new.user_id, recent, old.segments, updated_at_us, new.updated_at_us, read_at_us, new.attributes)
            )
        store.write_profiles(*merged)
