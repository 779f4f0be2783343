"""Repair of a damaged event log: every whole record is saved, before and behind the damage, and the loss is reported.

A damaged segment is copied aside and replaced by segments without the damage. The records keep their numbers, so that
ledger and tables stay in step with the log; the numbers of lost records are missing in it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from leadre.serve.events import durable, user_texts
from leadre.serve.events.event_log import MAGIC, Frame, first_fault, first_number, segments, whole_frames
from leadre.serve.events.log_writer import locked


class Loss(NamedTuple):
    """Records [``first``, ``last``] that a segment has lost; ``after_us`` to ``before_us`` is when they were written.

    0 = unknown. ``segment``: the copy of the damaged file.
    """

    segment: Path
    first: int
    last: int
    after_us: int
    before_us: int


def repair(folder: Path, aside: Path, known: int) -> list[Loss]:
    """Repair the log in ``folder``; returns the lost records, none for a log without damage.

    ``aside`` gets a copy of every damaged segment before it is replaced. ``known``: the last record that ledger or
    tables have; if the log ends before it, a new segment begins behind it. A killed repair can be repeated. InputError
    if a bidder has the log open, StorageError if the disk refuses.
    """
    lock = locked(folder)
    try:
        durable.tidy(folder)
        paths = segments(folder)
        losses: list[Loss] = []
        for path, following in zip(paths, [*paths[1:], None], strict=True):
            end = known if following is None else first_number(following) - 1
            losses += _repair_segment(path, aside / path.name, end, is_newest=following is None)
        return losses
    finally:
        os.close(lock)


def erase(aside: Path, users: Collection[str]) -> None:
    """Overwrite the IDs of users in the copies of damaged segments, where no record can be relied on.

    StorageError if the disk refuses.
    """
    inside = user_texts.long_enough(users)
    needles = [user.encode() if user in inside else msgspec.msgpack.encode(user) for user in users]
    for path in aside.glob("*.log"):
        data = path.read_bytes()
        erased = data
        for needle in needles:
            erased = erased.replace(needle, bytes(len(needle)))
        if erased != data:
            durable.replace(path, erased, mode=0o600)


def _repair_segment(path: Path, aside: Path, end: int, *, is_newest: bool) -> list[Loss]:
    """Replace a segment that should reach record ``end`` by its whole records, if any other is lost."""
    data = path.read_bytes()
    first = first_number(path)
    frames = list(whole_frames(data, first))
    last = frames[-1].number if frames else first - 1
    stop, due = first_fault(data, first)
    is_whole = stop == len(data) and bool(data)
    is_torn = is_newest and due == last + 1  # a write that was never acknowledged: the writer cuts it off
    if (is_whole or is_torn) and (not is_newest or last >= end):
        return []  # a number that is missing between two whole segments was lost before
    durable.replace(aside, data)
    runs = _runs(frames)
    if is_newest and last < end:
        durable.replace(_segment(path, end + 1), MAGIC)
    for run in reversed(runs):  # the damaged file is replaced last: until then a killed repair starts again
        durable.replace(_segment(path, run[0].number), MAGIC + b"".join(data[frame.start : frame.end] for frame in run))
    if not runs or runs[0][0].number != first:
        path.unlink()
        durable.sync_folder(path.parent)
    return _losses(aside, frames, first, end)


def _losses(aside: Path, frames: Sequence[Frame], first: int, end: int) -> list[Loss]:
    """The gaps in the numbers ``first`` to ``end`` that the frames leave."""
    before = Frame(0, 0, first - 1, 0)
    after = Frame(0, 0, max(end, frames[-1].number if frames else 0) + 1, 0)
    return [
        Loss(aside, left.number + 1, right.number - 1, left.written_at_us, right.written_at_us)
        for left, right in pairwise([before, *frames, after])
        if right.number > left.number + 1
    ]


def _runs(frames: Sequence[Frame]) -> list[list[Frame]]:
    """The frames in runs of numbers without a gap."""
    runs: list[list[Frame]] = []
    for frame in frames:
        if runs and frame.number == runs[-1][-1].number + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs


def _segment(path: Path, number: int) -> Path:
    return path.with_name(f"{number:020d}.log")
