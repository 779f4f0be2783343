"""Rows of a planted law as a ranker reads them.

The fields of a law are categories without meaning: those of the candidate are ``FeatureSpec.fields``, those of the
user are profile columns. There is no history, and the one number is constant.
"""

from __future__ import annotations

import numpy as np

from leadre.data import counts
from leadre.data.worlds.interaction import Interaction, Rows
from leadre.rank.inputs import RequestInputs
from leadre.rank.rows import Example
from leadre.rank.spec import PROFILE, FeatureSpec


def spec_of(law: Interaction, width: int) -> FeatureSpec:
    """The spec of a law's rows; all tables have ``width`` columns, as no field is known to matter more."""
    fields, values = law.sign_FV.shape
    profile = tuple(f"user{number}" for number in range(0, fields, 2))
    names = tuple(f"candidate{number}" for number in range(1, fields, 2))
    tables = dict.fromkeys((*names, *(PROFILE + name for name in profile)), values + 1)
    return FeatureSpec(
        labels=("click",),
        rows="shown",
        negatives=1.0,
        popularity="frozen",
        numbers=counts.NAMES[:1],
        fields=names,
        profile=profile,
        context=(),
        sequences=(),
        tables=tables,
        widths=dict.fromkeys(tables, width),
    )


def examples(rows: Rows) -> list[Example]:
    """The rows of each request."""
    candidates = rows.label_RC.shape[1]
    ads = np.arange(candidates, dtype=np.int32)
    return [
        Example(
            request=request,
            ads=ads,
            label_CH=rows.label_RC[request, :, None],
            inputs=RequestInputs(
                number_CF=np.zeros((candidates, 1), np.float32),
                field_CK=rows.candidate_RCK[request],
                content_C=np.zeros(candidates, np.int32),
                user_P=rows.user_RP[request],
                sequences={},
                is_new_C=np.ones(candidates, np.bool_),
            ),
        )
        for request in range(len(rows.label_RC))
    ]
