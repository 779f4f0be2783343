"""A ranker from the sums of bags: DLLP, EasyLLP, and pseudo labels of belief propagation.

Belief propagation (Havaldar et al., ICLR 2024, arXiv 2310.08056) has two steps a round. Labels are inferred that obey
the sums and agree among near rows, and the network is trained on them, with the loss of DLLP beside it. Near are rows
of like features at first, and of like hidden units of the network after it. Deviations from the paper:

- Pseudo labels are 1 for the likeliest rows of each bag, as many as its sum (hard), or marginals (soft). The paper
  takes marginals above one half as 1, which at low rates are hardly any. Soft labels differ by about 1 / n in bags of n
  rows, so that a network has to learn log-odds that are as small.
- The loss of DLLP is that of the network itself; the paper's has a second head on the mean of a bag's hidden units.
- The last of a fixed number of rounds counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leadre import progress
from leadre.rank import train
from leadre.rank.checkpoint import Checkpoint, Curve
from leadre.rank.models.shared import Ranker
from leadre.rank.options import BagOptions
from leadre.rank.processes import ALONE, Processes
from leadre.rank.proportions import beliefs, neighbours
from leadre.rank.proportions.bags import BagRows, blocks
from leadre.rank.proportions.beliefs import Propagation
from leadre.rank.proportions.losses import BagLoss, easy_targets
from leadre.rank.spec import FeatureSpec
from leadre.rank.train import Arrays, Training

BATCH_ROWS = 512  # of a step; a larger bag is a step


@dataclass(frozen=True, kw_only=True)
class Proportions:
    """``method``: the loss of bags, or labels inferred by belief propagation.

    Belief propagation alone: ``pseudo`` labels are marginals (soft), or 0 and 1 (hard); ``rounds`` of inference and
    training; edges to the nearest ``neighbours``; ``bag_factor`` of the loss of DLLP beside that of pseudo labels.
    """

    method: Literal["dllp", "easyllp", "bp"] = "bp"
    pseudo: Literal["soft", "hard"] = "hard"
    rounds: int = 2
    neighbours: int = 5
    bag_factor: float = 0.1
    propagation: Propagation = field(default_factory=Propagation)


def of_options(options: BagOptions) -> Proportions:
    """The same choices as options of the command."""
    propagation = Propagation(agreement=options.bag_agreement)
    return Proportions(method=options.bag_method, pseudo=options.pseudo_labels, propagation=propagation)


def fit(
    ranker: Ranker,
    spec: FeatureSpec,
    rows: BagRows,
    valid: BagRows,
    training: Training,
    options: Proportions,
    seed: int,
    content_OW: NDArray[np.float32] | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
) -> tuple[Arrays, Curve]:
    """As `train.fit`, from sums alone: the early stop is on the log loss of the bags of ``valid``.

    ``training.batch`` has no effect: a batch has `BATCH_ROWS` rows in whole bags.
    """
    stop = blocks(valid, first_bag=len(rows.sum_B))
    bag_factor = {"dllp": 1.0, "easyllp": 0.0, "bp": options.bag_factor}[options.method]
    loss = BagLoss(
        sum_B=np.concatenate([rows.sum_B, valid.sum_B]),
        factor_B=np.concatenate([bag_factor * rows.weight_B, valid.weight_B]),
    )
    vectors = neighbours.features(spec, rows.examples) if options.method == "bp" else None
    for number in range(options.rounds if vectors else 1):
        targets_N = None
        if options.method == "easyllp":
            targets_N = easy_targets(rows)
        elif vectors:
            graph = vectors.search(options.neighbours, seed)
            targets_N = beliefs.marginals(rows, graph, options.propagation)
            if options.pseudo == "hard":
                targets_N = beliefs.likeliest(rows, targets_N)
            progress.say(
                f"rank train: pseudo labels of round {number + 1}, {len(graph.kernel_E):,} pairs of neighbours"
            )
        parts = blocks(rows, targets_N)
        batch = max(1, round(BATCH_ROWS * len(parts) / len(rows.bag_N)))
        params, curve = train.fit(
            ranker,
            spec,
            parts,
            stop,
            replace(training, batch=batch),
            seed,
            content_OW,
            loss=loss,
            checkpoint=checkpoint and replace(checkpoint, folder=checkpoint.folder / f"round-{number + 1}"),
            processes=processes,
        )
        if vectors and number + 1 < options.rounds:
            vectors = neighbours.hidden(ranker, spec, params, rows.examples)
    return params, curve
