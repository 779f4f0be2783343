"""Rows of a planted law as a ranker reads them.

The fields of a law are categories without meaning, of user and candidate in turn: those of the candidate are
``FeatureSpec.fields``, those of the user are profile columns. There is no history, and the one number is constant.

Letters: R requests, C candidates, P user fields, K candidate fields, H labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leadre.data import counts
from leadre.data.worlds.bags import BagLaw
from leadre.data.worlds.chain import Chain
from leadre.data.worlds.chain import Rows as ChainRows
from leadre.data.worlds.interaction import Interaction, Rows
from leadre.rank.inputs import RequestInputs
from leadre.rank.rows import Example
from leadre.rank.spec import PROFILE, FeatureSpec

CHAIN = ("click", "conversion")


def spec_of(law: Interaction | Chain | BagLaw, width: int) -> FeatureSpec:
    """The spec of a law's rows; all tables have ``width`` columns, as no field is known to matter more."""
    if isinstance(law, Chain):
        fields, values = law.click_FV.shape
    else:
        fields, values = (law.effect_FV if isinstance(law, BagLaw) else law.sign_FV).shape
    profile = tuple(f"user{number}" for number in range(0, fields, 2))
    names = tuple(f"candidate{number}" for number in range(1, fields, 2))
    tables = dict.fromkeys((*names, *(PROFILE + name for name in profile)), values + 1)
    return FeatureSpec(
        labels=CHAIN if isinstance(law, Chain) else CHAIN[:1],
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


def examples(rows: Rows | ChainRows, weight_RCH: NDArray[np.float32] | None = None) -> list[Example]:
    """The rows of each request. The labels of a chain are the click, and the conversion after it."""
    if isinstance(rows, ChainRows):
        label_RCH = np.stack([rows.click_RC, rows.click_RC & rows.converts_RC], axis=2)
    else:
        label_RCH = rows.label_RC[..., None]
    candidates = label_RCH.shape[1]
    ads = np.arange(candidates, dtype=np.int32)
    return [
        Example(
            request=request,
            ads=ads,
            label_CH=label_RCH[request],
            inputs=RequestInputs(
                number_CF=np.zeros((candidates, 1), np.float32),
                field_CK=rows.candidate_RCK[request],
                content_C=np.zeros(candidates, np.int32),
                user_P=rows.user_RP[request],
                sequences={},
                is_new_C=np.ones(candidates, np.bool_),
            ),
            weight_CH=None if weight_RCH is None else weight_RCH[request],
        )
        for request in range(len(label_RCH))
    ]
