"""Gradient-boosted trees on the numbers alone (LightGBM, Ke et al., NeurIPS 2017): the baseline of every neural ranker.

A second forest for objects that are new to the user is fitted on their rows alone: features of repeats say nothing
there, and one forest spends its splits on them. Files are in LightGBM's text format, which loading parses only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray

from leadre.errors import InputError
from leadre.rank.rows import Example

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FILES = {"all": "trees.txt", "new": "trees-new.txt"}


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """Options of LightGBM; ``rounds`` is the most trees, and an early stop may leave fewer.

    The defaults score 1,000 ads in under 10 ms on one core; more trees at a lower rate rank little better (LOG.md).
    """

    rounds: int = 110
    learning_rate: float = 0.08
    num_leaves: int = 63
    min_data_in_leaf: int = 200
    feature_fraction: float = 0.8
    bagging_fraction: float = 0.8
    bagging_freq: int = 1
    lambda_l2: float = 5.0
    patience: int = 30


@dataclass(frozen=True, kw_only=True)
class Forests:
    """``all``: the forest of every row. ``new``: that of objects new to the user."""

    all: lightgbm.Booster
    new: lightgbm.Booster

    def logits(self, number_NF: NDArray[np.float32]) -> Floats:
        """Log-odds [N] of the sampled rows."""
        return np.asarray(self.all.predict(number_NF, raw_score=True, num_threads=1), np.float64)

    def new_logits(self, number_NF: NDArray[np.float32]) -> Floats:
        """Log-odds [N] by the forest of new objects; they order these objects among each other alone."""
        return np.asarray(self.new.predict(number_NF, raw_score=True, num_threads=1), np.float64)

    def features(self) -> list[tuple[str, list[str]]]:
        """The features of each forest, in the order of its columns."""
        return [(name, getattr(self, name).feature_name()) for name in FILES]

    def save(self, folder: Path) -> None:
        """Write both forests as text."""
        for name, file in FILES.items():
            forest: lightgbm.Booster = getattr(self, name)
            (folder / file).write_text(forest.model_to_string(num_iteration=forest.best_iteration), encoding="utf-8")


def load(folder: Path) -> Forests:
    """The forests that `Forests.save` wrote. InputError for a file that LightGBM cannot read."""
    forests = {}
    for name, file in FILES.items():
        try:
            forests[name] = lightgbm.Booster(model_str=(folder / file).read_text(encoding="utf-8"))
        except lightgbm.basic.LightGBMError as error:
            raise InputError(f"{folder / file}: {error}; run `leadre rank train` again") from error
    return Forests(**forests)


def fit(
    rows: Sequence[Example], valid: Sequence[Example], names: Sequence[str], boosting: Boosting, seed: int, threads: int
) -> Forests:
    """Both forests, each stopped early on its validation rows. ``names``: of the numbers; the first label counts.

    Without new objects of both labels to train on, and some to stop on, one forest serves both.
    """
    x_NF, label_N, is_new_N = _stacked(rows)
    valid_x_NF, valid_label_N, valid_is_new_N = _stacked(valid)
    options = {"objective": "binary", "seed": seed, "num_threads": threads, "deterministic": True, "verbosity": -1}
    options |= {key: value for key, value in asdict(boosting).items() if key not in ("rounds", "patience")}
    every = _forest((x_NF, label_N), (valid_x_NF, valid_label_N), names, options, boosting)
    if not (0 < label_N[is_new_N].sum() < is_new_N.sum() and valid_is_new_N.any()):
        return Forests(all=every, new=every)
    new = (x_NF[is_new_N], label_N[is_new_N])
    valid_new = (valid_x_NF[valid_is_new_N], valid_label_N[valid_is_new_N])
    return Forests(all=every, new=_forest(new, valid_new, names, options, boosting))


def _forest(
    rows: tuple[NDArray[np.float32], Bools],
    valid: tuple[NDArray[np.float32], Bools],
    names: Sequence[str],
    options: Mapping[str, object],
    boosting: Boosting,
) -> lightgbm.Booster:
    data = lightgbm.Dataset(rows[0], rows[1].astype(np.float32), feature_name=list(names))
    return lightgbm.train(
        dict(options),
        data,
        num_boost_round=boosting.rounds,
        valid_sets=[data.create_valid(valid[0], valid[1].astype(np.float32))],
        callbacks=[lightgbm.early_stopping(boosting.patience, verbose=False)],
    )


def _stacked(rows: Sequence[Example]) -> tuple[NDArray[np.float32], Bools, Bools]:
    """(numbers [N, F], first label [N], whether the object is new to the user [N]) of all rows."""
    return (
        np.concatenate([row.inputs.number_CF for row in rows]),
        np.concatenate([row.label_CH[:, 0] for row in rows]),
        np.concatenate([row.inputs.is_new_C for row in rows]),
    )
