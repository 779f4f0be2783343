"""What serving knows beside the lists: what is popular, for whoever has no list, and what each user did lately."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import AD, TEST
from leadre.generate.channels import popularity
from leadre.store.contract import MAX_RECENT, Profile, ProfileEvent, StoredList

if TYPE_CHECKING:
    from leadre.data.histories import Logs


def popular(logs: Logs, now_us: int, ads: NDArray[np.int32], version: str, top: int) -> StoredList:
    """The best of ``ads`` by the channel `popularity`, with logarithms of their shares of what was acted on before now.

    Each ad counts once more than it was acted on, so that new ones have a share too.
    """
    known = dataclasses.replace(  # what is learned from ends now
        logs, request_at_us_R=np.array([now_us]), request_split_R=np.array([TEST], np.int8)
    )
    score_A = popularity.fit_conversions(known, 0, 1).score_A[ads].astype(np.float64) + 1
    best = np.argsort(-score_A, kind="stable")[:top]
    log_p = np.log(score_A[best] / score_A.sum())
    ad_ids = logs.ads["ad_id"].gather(ads[best]).to_list()
    return StoredList(version, time.time_ns() // 1000, tuple(ad_ids), tuple(log_p.tolist()))


def profiles(logs: Logs, now_us: int, users: NDArray[np.int64]) -> Iterator[Profile]:
    """What each of ``users`` did last before now, in the form in which serving adds to it; no segments."""
    user_ids, object_ids = logs.users["user_id"].to_list(), logs.objects["object_id"].to_list()
    for user in users.tolist():
        start, end = logs.event_offsets[user], logs.event_offsets[user + 1]
        stop = start + np.searchsorted(logs.at_us_E[start:end], now_us, side="left")
        span = slice(max(start, stop - MAX_RECENT), stop)
        columns = (logs.object_E, logs.at_us_E, logs.domain_E, logs.value_nanos_E)
        rows = zip(*(column[span].tolist() for column in columns), strict=True)
        recent = tuple(
            ProfileEvent(object_ids[o], at, "ad" if kind == AD else "content", nanos) for o, at, kind, nanos in rows
        )
        yield Profile(user_ids[user], recent, (), now_us)
