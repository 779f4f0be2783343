"""Alignment examples -> tensors: several examples in a row, each attending to itself alone.

Letters: B rows, T = ROW_POSITIONS positions, N answers (words first, then codes), M examples that end in codes,
L levels, K tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.lm.prior import InventoryPrior
from leadre.semid.trie import Trie, path_priors
from leadre.tune.alignment.sampler import ROW_POSITIONS, AlignmentExample

Rows = Sequence[Sequence[AlignmentExample]]


@dataclass(frozen=True)
class PackedExamples:
    """Model inputs of some rows, and the flat positions (b * T + t) whose hidden states predict the answers."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask_BTT: Tensor
    words_at_N: Tensor  # flat position before each answer word
    words_N: Tensor
    codes_at_ML: Tensor
    codes_ML: Tensor
    priors: list[Tensor]  # L of float32 [M, sizes[l]]
    task_N: Tensor  # index into ``tasks`` of each answer, words first: [words + M * L]
    tasks: tuple[str, ...]
    examples: Mapping[str, int]  # by task
    positions: Mapping[str, int]  # by task

    def to(self, device: torch.device) -> PackedExamples:
        """A copy on ``device``."""
        moved: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, priors=[prior.to(device) for prior in self.priors])


def pack(
    rows: Rows, live: InventoryPrior, trie_of: Callable[[AlignmentExample], Trie], tasks: tuple[str, ...]
) -> PackedExamples:
    """Tensors of ``rows``; the codes of an example are scored among the objects of its trie."""
    levels = len(live.sizes)
    ids_BT = np.zeros((len(rows), ROW_POSITIONS), np.int64)
    positions_BT = np.zeros_like(ids_BT)
    owner_BT = np.full_like(ids_BT, -1)  # number of the example at each position; padding: -1
    words_at = [np.zeros(0, np.int64)]
    codes_at = list[NDArray[np.int64]]()
    for number, (b, start, example) in enumerate(_placements(rows)):
        end = start + len(example.ids)
        ids_BT[b, start:end] = example.ids
        positions_BT[b, start:end] = np.arange(len(example.ids))
        owner_BT[b, start:end] = number
        words_at.append(b * ROW_POSITIONS + start + example.words)
        if example.target >= 0:
            codes_at.append(b * ROW_POSITIONS + end - levels + np.arange(levels))
    at_N = np.concatenate(words_at)
    examples = [example for row in rows for example in row]
    coded = [example for example in examples if example.target >= 0]
    # per level, float32 [1, sizes[l]]: the prior over the next code, given the target's codes before it
    priors = [path_priors(trie_of(example), live.codes_OL[[example.target]]) for example in coded]
    task_N = [tasks.index(example.task) for example in examples for _ in example.words]
    task_N += [tasks.index(example.task) for example in coded for _ in range(levels)]
    positions = Counter[str]()
    for example in examples:
        positions[example.task] += len(example.ids)
    return PackedExamples(
        ids_BT=torch.from_numpy(ids_BT),
        positions_BT=torch.from_numpy(positions_BT),
        mask_BTT=torch.from_numpy(
            (owner_BT[:, :, None] == owner_BT[:, None, :]) & np.tri(ROW_POSITIONS, dtype=np.bool_)
        ),
        words_at_N=torch.from_numpy(at_N - 1),
        words_N=torch.from_numpy(ids_BT.ravel()[at_N]),
        codes_at_ML=torch.from_numpy(np.array(codes_at, np.int64).reshape(-1, levels)),
        codes_ML=torch.from_numpy(live.codes_OL[[example.target for example in coded]].astype(np.int64)),
        priors=[torch.from_numpy(np.concatenate(level)) for level in zip(*priors, strict=True)],
        task_N=torch.tensor(task_N, dtype=torch.int64),
        tasks=tasks,
        examples=Counter(example.task for example in examples),
        positions=positions,
    )


def _placements(rows: Rows) -> Iterator[tuple[int, int, AlignmentExample]]:
    """(row, first position, example) of each example."""
    for b, row in enumerate(rows):
        start = 0
        for example in row:
            yield b, start, example
            start += len(example.ids)
