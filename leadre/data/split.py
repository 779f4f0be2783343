"""Split requests by time: training, then validation, then test."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from leadre.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SplitTimes:
    """Begin of validation and test: two dates, or shares of the requests, latest last."""

    valid_from: str | None = None
    test_from: str | None = None
    valid_share: float = 0.1
    test_share: float = 0.1


def by_time(at: pl.Series, cut: SplitTimes) -> pl.Series:
    """``train``, ``valid`` or ``test`` for each request time.

    A boundary lies between two distinct times, so requests of one instant stay together. Raises InputError for invalid
    dates, dates out of order, shares outside 0..1, and an empty split.
    """
    valid_from, test_from = _boundaries(at, cut)
    if not valid_from < test_from:
        raise InputError(
            f"validation begins {valid_from:%Y-%m-%d %H:%M} and the test {test_from:%Y-%m-%d %H:%M};"
            " the test must begin later: set --valid-from and --test-from, or the shares"
        )
    frame = pl.DataFrame({"at": at})
    label = pl.when(pl.col("at") < valid_from).then(pl.lit("train"))
    labels = frame.select(
        label.when(pl.col("at") < test_from).then(pl.lit("valid")).otherwise(pl.lit("test")).alias("split")
    )
    counts = dict(labels["split"].value_counts().iter_rows())
    for name in ("train", "valid", "test"):
        if not counts.get(name):
            raise InputError(
                f"no request falls into {name}: validation begins {valid_from:%Y-%m-%d %H:%M}, the test"
                f" {test_from:%Y-%m-%d %H:%M}, the requests run {at.min()!s} to {at.max()!s};"
                " move --valid-from and --test-from"
            )
    return labels["split"]


def split_like(at: pl.Series, requests: pl.DataFrame) -> pl.Series:
    """The split of each time by the boundaries of ``requests``: a split begins with its first request."""
    starts = dict(requests.group_by("split").agg(pl.min("at")).iter_rows())
    label = pl.lit("train")
    for name in ("valid", "test"):
        if name in starts:
            label = pl.when(pl.col("at") >= starts[name]).then(pl.lit(name)).otherwise(label)
    return pl.DataFrame({"at": at}).select(label.alias("split"))["split"]


def date(text: str, name: str) -> datetime:
    """An ISO date or time of the option ``--name`` as UTC. Raises InputError for other text."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"--{name} {text!r}: not a date; write it as 2026-03-01 or 2026-03-01T08:00:00") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _boundaries(at: pl.Series, cut: SplitTimes) -> tuple[datetime, datetime]:
    if (cut.valid_from is None) != (cut.test_from is None):
        raise InputError(
            "set both --valid-from and --test-from, or neither (then --valid-share and --test-share apply)"
        )
    if cut.valid_from is not None and cut.test_from is not None:
        return date(cut.valid_from, "valid-from"), date(cut.test_from, "test-from")
    if cut.valid_share <= 0 or cut.test_share <= 0 or cut.valid_share + cut.test_share >= 1:
        raise InputError(
            f"--valid-share {cut.valid_share:g} and --test-share {cut.test_share:g}: both above 0, together below 1"
        )
    times = at.sort()
    last = times.len() - 1
    valid = times[min(last, round(times.len() * (1 - cut.valid_share - cut.test_share)))]
    test = times[min(last, round(times.len() * (1 - cut.test_share)))]
    return valid, test
