"""Rows of a planted law of histories as a ranker reads them: objects with their groups, events an hour apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from leadre.data import counts
from leadre.data.worlds import tasks
from leadre.data.worlds.history import HistoryRows
from leadre.rank.inputs import US_PER_HOUR, Positions, RequestInputs, gap_rows
from leadre.rank.rows import Example
from leadre.rank.spec import PROFILE, FeatureSpec, SequenceSpec

Groups = Mapping[str, NDArray[np.int32]]  # field -> the group of each object, from 1 on; row 0 is no object


def spec_of(
    groups: Groups, length: int, *, profile: Mapping[str, int] | None = None, labels: tuple[str, ...] = ("click",)
) -> FeatureSpec:
    """The spec of a law: the newest ``length`` events are read. ``profile``: table sizes of the user's fields."""
    profile = profile or {}
    fields = {"object": len(next(iter(groups.values())))}
    fields |= {name: int(group_O.max()) + 1 for name, group_O in groups.items()}
    tables = fields | {PROFILE + name: values for name, values in profile.items()} | {"hour": 2}
    return FeatureSpec(
        labels=labels,
        rows="shown",
        negatives=1.0,
        popularity="frozen",
        numbers=counts.NAMES[:1],
        fields=tuple(fields),
        profile=tuple(profile),
        context=("hour",),
        sequences=(SequenceSpec(name="ad_short", domain="ad", is_distinct=False, length=length),),
        tables=tables,
        widths=dict.fromkeys(tables, 8),
    )


def examples(rows: HistoryRows | tasks.Rows, groups: Groups, length: int) -> list[Example]:
    """The rows of each request, with the newest ``length`` events; the last one was an hour ago."""
    histories = [history_T[history_T > 0] for history_T in rows.history_RT[:, -length:]]
    gap_T = gap_rows(np.arange(length, 0, -1) * US_PER_HOUR)
    requests, candidates = rows.candidate_RC.shape
    hour_R1 = np.ones((requests, 1), np.int32)
    user_RP = np.concatenate([rows.user_RK, hour_R1], axis=1) if isinstance(rows, tasks.Rows) else hour_R1
    label_RCH = rows.label_RCK if isinstance(rows, tasks.Rows) else rows.label_RC[..., None]
    return [
        Example(
            request=request,
            ads=np.arange(candidates, dtype=np.int32),
            label_CH=label_RCH[request],
            inputs=RequestInputs(
                number_CF=np.zeros((candidates, 1), np.float32),
                field_CK=_fields(rows.candidate_RC[request], groups),
                content_C=rows.candidate_RC[request],
                user_P=user_RP[request],
                sequences={
                    "ad_short": Positions(
                        field_TK=_fields(history_T, groups),
                        content_T=history_T,
                        gap_T=gap_T[length - len(history_T) :],
                        count_T=np.zeros(len(history_T), np.float32),
                    )
                },
                is_new_C=np.ones(candidates, np.bool_),
            ),
        )
        for request, history_T in enumerate(histories)
    ]


def _fields(objects: NDArray[np.int32], groups: Groups) -> NDArray[np.int32]:
    return np.stack([objects, *(group_O[objects] for group_O in groups.values())], axis=1)
