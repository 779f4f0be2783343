"""Moments and candidate ads -> the arrays of a ranker, by its spec; training and serving call the same functions.

Letters: R requests, C candidates of a request, T positions of a sequence, F numbers, K categorical fields of an object,
P categorical features of user and context, H labels, O objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.data import counts
from leadre.data.collaborative import CollaborativeUser, Spread
from leadre.data.counts import CountTables
from leadre.data.histories import AD, CONTENT, I32, Logs
from leadre.data.moment import History, Moment
from leadre.rank.spec import CONTEXT, PROFILE, FeatureSpec, SequenceSpec
from leadre.units import US_PER_DAY

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

PROFILE_BINS = 10  # of a profile column of numbers
GAP_ROWS = 64  # buckets of the time since an event; row 0 is the candidate's own time
US_PER_HOUR = US_PER_DAY // 24
MONDAY_DAYS = 4  # 1970-01-05 was a Monday


@dataclass(frozen=True, kw_only=True)
class Positions:
    """A sequence as arrays: fields [T, K], bucket of the time since [T], log of the event count [T].

    ``content_T``: 1 + the object's number in the catalogue, the row of its content vector.
    """

    field_TK: I32
    content_T: I32
    gap_T: I32
    count_T: Floats


@dataclass(frozen=True, kw_only=True)
class RequestInputs:
    """One request: its candidates, the user and context, the sequences by name."""

    number_CF: Floats
    field_CK: I32
    content_C: I32  # as `Positions.content_T`
    user_P: I32
    sequences: Mapping[str, Positions]
    is_new_C: Bools  # the object is not in the history


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """Sequences of R requests, padded on the right to the longest; ``mask_RT`` is True at events."""

    field_RTK: Any
    content_RT: Any
    gap_RT: Any
    count_RT: Any
    mask_RT: Any


@dataclass(frozen=True, kw_only=True)
class Batch:
    """R requests with padded candidates; ``mask_RC`` is True at candidates. Arrays of numpy, or tensors of torch."""

    number_RCF: Any
    field_RCK: Any
    content_RC: Any
    user_RP: Any
    sequences: Mapping[str, SequenceBatch]
    mask_RC: Any


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Rows of categorical values, as training saw them.

    ``field_OK``: rows of the objects' fields, columns as in ``FeatureSpec.fields``. ``profile``: by column, the row of
    each value, or the bounds of bins. ``placements``: those of the log, as `Moment.placement` numbers them.
    """

    field_OK: I32
    profile: Mapping[str, Mapping[str, int] | tuple[float, ...]]
    placements: Sequence[str] = ()

    def user_row(self, name: str, value: object) -> int:
        """Row of a profile value; 0 if it is missing or was not seen."""
        known = self.profile[name]
        if isinstance(known, Mapping):
            return known.get(str(value), 0) if value is not None else 0
        if not isinstance(value, int | float) or not np.isfinite(value):
            return 0
        return 1 + int(np.searchsorted(known, value, side="right"))


def vocabulary(logs: Logs, seen_O: Bools, codes_OL: I32) -> tuple[Vocabulary, tuple[str, ...], dict[str, int]]:
    """(rows of all categorical values, fields of objects, rows of each table).

    Objects outside ``seen_O`` have row 0 of ``object``. Groups (category, brand and so on) and prefixes of semantic IDs
    are facts of the catalogue, known before the first event. ``codes_OL``: the codes of each object; the fields
    ``sid1``, ``sid2``, ... are its prefixes. L may be 0.
    """
    prefixes = range(1, codes_OL.shape[1] + 1)
    columns = {"object": np.where(seen_O, np.cumsum(seen_O), 0)}
    columns |= dict(zip(counts.GROUPINGS, counts.groups(logs), strict=True))
    columns |= {f"sid{n}": np.unique(codes_OL[:, :n], axis=0, return_inverse=True)[1] + 1 for n in prefixes}
    field_OK = np.stack(list(columns.values()), axis=1).astype(np.int32)
    sizes = {name: int(rows.max(initial=0)) + 1 for name, rows in columns.items()}
    profile: dict[str, Mapping[str, int] | tuple[float, ...]] = {}
    for name in logs.users.columns:
        if name == "user_id":
            continue
        profile[name] = _profile_rows(logs.users[name])
        sizes[PROFILE + name] = 1 + len(profile[name]) + (not isinstance(profile[name], Mapping))
    sizes |= {"placement": len(logs.placements) + 1, "weekday": 8, "hour": 25}
    known = Vocabulary(field_OK=field_OK, profile=profile, placements=logs.placements)
    return known, tuple(columns), sizes


def _profile_rows(column: pl.Series) -> Mapping[str, int] | tuple[float, ...]:
    if column.dtype.is_numeric():
        known = column.cast(pl.Float64)
        known = known.filter(known.is_finite())
        quantiles = [known.quantile(share) for share in np.linspace(0, 1, PROFILE_BINS + 1)[1:-1]] if len(known) else []
        return tuple(sorted({float(value) for value in quantiles if value is not None}))
    values = sorted({str(value) for value in column.drop_nulls()})
    return {value: row + 1 for row, value in enumerate(values)}


def inputs(moment: Moment, ads: I32, spec: FeatureSpec, known: Vocabulary, tables: CountTables) -> RequestInputs:
    """Arrays of one request with candidates ``ads``, which must be live in the Moment."""
    objects_C = moment.inventory.ad_object[np.searchsorted(moment.inventory.ads, ads)].astype(np.int64)
    return of_objects(moment, objects_C, spec, known, tables)


def of_objects(
    moment: Moment,
    objects_C: NDArray[np.int64],
    spec: FeatureSpec,
    known: Vocabulary,
    tables: CountTables,
    *,
    user: CollaborativeUser | None = None,
    spread: Spread | None = None,
) -> RequestInputs:
    """Arrays of one request with candidates that show ``objects_C``. ``user`` and ``spread``: as in `counts.features`.

    The objects must be live in the Moment.
    """
    objects_I, row_C = np.unique(objects_C, return_inverse=True)
    number_IF = counts.features(moment, tables, objects_I, user=user, spread=spread)
    number_IF = number_IF[:, [counts.NAMES.index(name) for name in spec.numbers]]
    faulty_F = ~np.isfinite(number_IF).all(axis=0)
    assert not faulty_F.any(), f"features that are not finite: {np.array(spec.numbers)[faulty_F]}, at {moment.at_us}"
    history = moment.history
    return RequestInputs(
        number_CF=number_IF[row_C],
        field_CK=known.field_OK[objects_C],
        content_C=(objects_C + 1).astype(np.int32),
        user_P=_user_rows(moment, spec, known),
        sequences={part.name: positions(history, part, moment.at_us, known.field_OK) for part in spec.sequences},
        is_new_C=~np.isin(objects_C, history.object_E),
    )


def _user_rows(moment: Moment, spec: FeatureSpec, known: Vocabulary) -> I32:
    hours = moment.at_us // US_PER_HOUR
    context = {
        "placement": moment.placement + 1,
        "weekday": (hours // 24 - MONDAY_DAYS) % 7 + 1,
        "hour": hours % 24 + 1,
    }
    assert tuple(context) == CONTEXT, CONTEXT
    profile = [known.user_row(name, moment.profile.get(name)) for name in spec.profile]
    return np.array([*profile, *(context[name] for name in spec.context)], np.int32)


def positions(history: History, part: SequenceSpec, at_us: int, field_OK: I32) -> Positions:
    """The positions of one sequence, oldest first."""
    rows = np.flatnonzero(history.domain_E == (AD if part.domain == "ad" else CONTENT))
    count_T = np.ones(min(len(rows), part.length), np.int64)
    if part.is_distinct:
        _, from_end, count = np.unique(history.object_E[rows][::-1], return_index=True, return_counts=True)
        newest = np.argsort(-from_end, kind="stable")[-part.length :]  # the last event of an object places it
        rows = rows[len(rows) - 1 - from_end[newest]]
        count_T = count[newest]
    rows = rows[-part.length :]
    return Positions(
        field_TK=field_OK[history.object_E[rows]],
        content_T=history.object_E[rows] + np.int32(1),
        gap_T=gap_rows(at_us - history.at_us_E[rows]),
        count_T=np.log1p(count_T).astype(np.float32),
    )


def gap_rows(gap_us: NDArray[np.int64]) -> I32:
    """Bucket of a time span, 1 to `GAP_ROWS` - 1: four to each doubling, from an hour on."""
    hours = np.maximum(gap_us, 0) / US_PER_HOUR
    return (1 + 4 * np.log2(1 + hours)).astype(np.int32).clip(1, GAP_ROWS - 1)


def collate(requests: Sequence[RequestInputs]) -> Batch:
    """Requests as one padded batch. Padding has row 0 and number 0, and no weight in any model."""
    names = requests[0].sequences
    return Batch(
        number_RCF=_padded([request.number_CF for request in requests]),
        field_RCK=_padded([request.field_CK for request in requests]),
        content_RC=_padded([request.content_C for request in requests]),
        user_RP=np.stack([request.user_P for request in requests]),
        sequences={
            name: SequenceBatch(
                field_RTK=_padded([request.sequences[name].field_TK for request in requests]),
                content_RT=_padded([request.sequences[name].content_T for request in requests]),
                gap_RT=_padded([request.sequences[name].gap_T for request in requests]),
                count_RT=_padded([request.sequences[name].count_T for request in requests]),
                mask_RT=_padded([np.ones(len(request.sequences[name].gap_T), np.bool_) for request in requests]),
            )
            for name in names
        },
        mask_RC=_padded([np.ones(len(request.number_CF), np.bool_) for request in requests]),
    )


def _padded(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of different length as one, zeros after the end of each."""
    length = max(1, *map(len, rows)) if len(rows) > 1 else max(1, len(rows[0]))
    result = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for row, values in zip(result, rows, strict=True):
        row[: len(values)] = values
    return result
