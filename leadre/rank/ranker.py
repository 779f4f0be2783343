"""A trained ranker on disk and in memory: spec, vocabulary, count tables, weights.

Letters: C candidates of a request, H labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from leadre.data import counts
from leadre.data.counts import CountTables
from leadre.errors import InputError
from leadre.rank import spec as specs
from leadre.rank.calibrate import unsampled
from leadre.rank.inputs import RequestInputs, Vocabulary, collate
from leadre.rank.models import gbdt
from leadre.rank.models.gbdt import Forests
from leadre.rank.models.registry import RANKERS
from leadre.rank.models.shared import CONTENT
from leadre.rank.spec import FeatureSpec

GBDT = "gbdt"
MODELS = (GBDT, *RANKERS)
WEIGHTS, VOCABULARY, OBJECTS = "weights.safetensors", "vocabulary.json", "objects.json"

Floats = NDArray[np.float64]


class _Facts(msgspec.Struct, frozen=True):
    """The parts of a ranker that are no arrays."""

    model: str
    profile: dict[str, dict[str, int] | tuple[float, ...]]
    placements: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainedRanker:
    """``model``: a name of MODELS. ``weights``: the parameters of a neural ranker, or the forests of gbdt.

    ``object_ids`` are the objects by number, as all arrays count them. ``tables`` are those of the end of training,
    which scores of later requests read.
    """

    model: str
    object_ids: Sequence[str]
    spec: FeatureSpec
    known: Vocabulary
    tables: CountTables
    weights: Forests | Mapping[str, NDArray[np.float32]]

    @property
    def input_spec(self) -> FeatureSpec:
        """The spec of the inputs that `logits` reads: trees read no sequence."""
        return replace(self.spec, sequences=()) if isinstance(self.weights, Forests) else self.spec

    def logits(self, request: RequestInputs) -> Floats:
        """Log-odds [C, H] of the labels, before calibration, without the sampling of negatives."""
        if isinstance(self.weights, Forests):
            logit_CH = self.weights.logits(request.number_CF)[:, None]
        else:
            batch = collate([request])
            ranker = RANKERS[self.model]
            state = ranker.user(self.weights, self.spec, batch)
            logit_CH = ranker.score(self.weights, self.spec, state, batch)[0]
        return unsampled(logit_CH[: len(request.is_new_C)], self.spec.negatives)

    def new_scores(self, request: RequestInputs) -> Floats:
        """Scores [C] that order objects new to the user among each other."""
        if isinstance(self.weights, Forests):
            return self.weights.new_logits(request.number_CF)
        return np.asarray(self.logits(request)[:, 0])

    def save(self, folder: Path) -> None:
        """Write all parts, as JSON, safetensors and LightGBM's text."""
        self.spec.save(folder)
        self.tables.save(folder)
        facts = _Facts(
            model=self.model,
            profile={
                name: dict(rows) if isinstance(rows, Mapping) else rows for name, rows in self.known.profile.items()
            },
            placements=tuple(self.known.placements),
        )
        (folder / VOCABULARY).write_bytes(msgspec.json.encode(facts))
        (folder / OBJECTS).write_bytes(msgspec.json.encode(self.object_ids))
        arrays: dict[str, NDArray[np.float32] | NDArray[np.int32]] = {"field_OK": self.known.field_OK}
        if isinstance(self.weights, Forests):
            self.weights.save(folder)
        else:
            arrays |= self.weights
        save_file(arrays, folder / WEIGHTS)


def load(folder: Path) -> TrainedRanker:
    """The ranker that `TrainedRanker.save` wrote.

    InputError if it has another model or feature than this version, or parts of different rankers.
    """
    facts = msgspec.json.decode((folder / VOCABULARY).read_bytes(), type=_Facts)
    if facts.model not in MODELS:
        raise InputError(f"{folder}: its model is {facts.model!r}; this version has {', '.join(MODELS)}")
    arrays = load_file(folder / WEIGHTS)
    ranker = TrainedRanker(
        model=facts.model,
        object_ids=msgspec.json.decode((folder / OBJECTS).read_bytes(), type=list[str]),
        spec=specs.load(folder),
        known=Vocabulary(field_OK=arrays.pop("field_OK"), profile=facts.profile, placements=facts.placements),
        tables=counts.load(folder),
        weights=gbdt.load(folder) if facts.model == GBDT else arrays,
    )
    _check(folder, ranker)
    return ranker


def _check(folder: Path, ranker: TrainedRanker) -> None:
    """InputError unless spec, vocabulary, tables and weights belong together."""
    spec = ranker.spec
    objects = len(ranker.object_ids)
    field_OK = ranker.known.field_OK
    pairs: list[tuple[str, object, object]] = [
        ("objects and fields", field_OK.shape, (objects, len(spec.fields))),
        ("count tables", ranker.tables.group_GO.shape[1], objects),
        ("profile columns", sorted(ranker.known.profile), sorted(spec.profile)),
    ]
    if isinstance(ranker.weights, Forests):
        pairs += [(f"trees of {name}", names, list(spec.numbers)) for name, names in ranker.weights.features()]
    else:
        expected = RANKERS[ranker.model].init(spec, np.random.default_rng(0))
        shapes = {name: array.shape for name, array in ranker.weights.items() if name != CONTENT}
        pairs.append(("weights", shapes, {name: array.shape for name, array in expected.items() if name != CONTENT}))
    for part, actual, expected_part in pairs:
        if actual != expected_part:
            raise InputError(
                f"{folder}: its {part} are {actual}, but its spec has {expected_part}:"
                " the files are of different rankers; run `leadre rank train` again"
            )
