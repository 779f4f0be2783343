"""Narrow tables by field, FDO of GDCN (Wang et al., CIKM 2023, arXiv 2311.04635).

A network is trained with the usual widths, the principal components of each table are computed, and a field keeps as
many columns as hold a share of the variance. The network is then trained again with these widths; the components
themselves are not used. Only rows that occur in training count: the others are the noise of the start, which has the
same variance in every direction and would keep every column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec


def widths(
    spec: FeatureSpec, params: Mapping[str, NDArray[np.float32]], rows: Sequence[Example], share: float
) -> dict[str, int]:
    """Columns of each table of fields, user and context, that hold ``share`` of its variance; at least 1.

    ``params``: of a network trained on ``rows``.
    """
    values: dict[str, list[NDArray[np.int32]]] = {}
    for column, name in enumerate(spec.fields):
        values[name] = [row.inputs.field_CK[:, column] for row in rows]
        values[name] += [part.field_TK[:, column] for row in rows for part in row.inputs.sequences.values()]
    for column, name in enumerate(spec.user_tables):
        values[name] = [row.inputs.user_P[column : column + 1] for row in rows]
    return {
        name: _columns(params[f"table.{name}"], np.unique(np.concatenate(seen)), share) for name, seen in values.items()
    }


def _columns(table: NDArray[np.float32], seen: NDArray[np.int32], share: float) -> int:
    """The number of principal components of the rows ``seen`` that hold ``share`` of their variance."""
    rows = table[seen].astype(np.float64)
    variance = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    if not variance.any():
        return 1
    held = np.cumsum(variance) / variance.sum()
    return 1 + int(np.searchsorted(held, share - 1e-9))
