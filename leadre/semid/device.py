"""Masks as tensors, for a beam search on the GPU without transfers.

Shapes depend only on the number of beams and the level, and the host reads nothing back, so a CUDA graph may hold
a step. States are those of the source mask, whose `rows` converts leaf states into rows.

Letters: B beams, K most children of a node of the level, N rows, V nodes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.semid.inventory import NODE_BITS, UnionMask
from leadre.semid.trie import DEAD, ROOT, Trie


class DeviceMask:
    """`log_prior`, `step` and `rows_below` of a trie or of a live inventory, copied to ``device``.

    It does not observe later writes: `refresh` copies pauses, additions require a new `DeviceMask`.
    """

    def __init__(self, mask: Trie | UnionMask, device: torch.device | str) -> None:
        self.sizes = mask.sizes
        self.weighted = mask.weighted
        tries = (mask.base, mask.added) if isinstance(mask, UnionMask) else (mask,)
        self.parts = [_DeviceTrie(trie, device) for trie in tries]

    def log_prior(self, states_B: Tensor, level: int) -> Tensor:
        """Log-prior of the codes, float32 [B, sizes[level]]: -inf for codes without a live row."""
        masses = torch.zeros(len(states_B), self.sizes[level], dtype=torch.float64, device=states_B.device)
        for part, nodes_B in zip(self.parts, self._nodes(states_B), strict=True):
            edges_BK, is_child_BK = part.children(nodes_B, level)
            weights_BK = torch.where(is_child_BK, part.weights_V[edges_BK + 1], 0)
            masses.scatter_add_(1, part.codes_E[edges_BK].long(), weights_BK.double())
        return (masses.log() if self.weighted else torch.where(masses > 0, 0.0, -torch.inf)).float()

    def step(self, states_B: Tensor, codes_B: Tensor, level: int) -> Tensor:
        """State after the codes: int64 [B], DEAD for codes without a live row."""
        states = torch.zeros_like(states_B)
        for number, (part, nodes_B) in enumerate(zip(self.parts, self._nodes(states_B), strict=True)):
            edges_BK, is_child_BK = part.children(nodes_B, level)
            is_it_BK = is_child_BK & (part.codes_E[edges_BK] == codes_B[:, None]) & (part.rows_V[edges_BK + 1] > 0)
            states |= torch.where(is_it_BK, edges_BK + 1, 0).sum(1) << (NODE_BITS * number)
        return torch.where(states > 0, states, DEAD)

    def rows_below(self, states_B: Tensor) -> Tensor:
        """Number of live rows below each state: int64 [B], 0 for DEAD."""
        counts = torch.zeros_like(states_B)
        for part, nodes_B in zip(self.parts, self._nodes(states_B), strict=True):
            counts += torch.where(nodes_B >= 0, part.rows_V[nodes_B.clamp(min=0)], 0)
        return counts

    def refresh(self, codes_NL: NDArray[np.integer]) -> None:
        """Copy counts and masses of these paths and their ancestors, after ads were paused, resumed or removed."""
        for part in self.parts:
            nodes = np.unique(part.trie.nodes(codes_NL))
            part.copy(nodes[nodes >= 0])

    def _nodes(self, states_B: Tensor) -> list[Tensor]:
        """The node of each state in each part, as in `leadre.semid.inventory.UnionMask`."""
        nodes = [states_B >> (NODE_BITS * number) & ((1 << NODE_BITS) - 1) for number in range(len(self.parts))]
        return [torch.where(states_B > ROOT, torch.where(part > 0, part, DEAD), states_B) for part in nodes]


class _DeviceTrie:
    """The arrays of one trie."""

    def __init__(self, trie: Trie, device: torch.device | str) -> None:
        def on_device(array: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(device, copy=True)

        self.trie = trie
        self.offsets = on_device(trie.child_offsets)
        self.codes_E = on_device(trie.child_codes)
        self.rows_V = on_device(trie.rows_beneath)
        self.weights_V = self.rows_V if trie.mass is None else on_device(trie.mass)
        degrees = np.diff(trie.child_offsets)
        starts = trie.level_starts
        self.max_children = [int(degrees[starts[d] : starts[d + 1]].max(initial=0)) for d in range(trie.depth)]

    def children(self, nodes_B: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """(edges int64 [B, K], whether each exists); edge 0 fills the rest."""
        at_K = torch.arange(self.max_children[level], device=nodes_B.device)
        nodes = nodes_B.clamp(min=0)
        first_B = self.offsets[nodes].long()
        end_B = self.offsets[nodes + 1].long()
        edges_BK = first_B[:, None] + at_K
        is_child_BK = (edges_BK < end_B[:, None]) & (nodes_B >= 0)[:, None]
        return torch.where(is_child_BK, edges_BK, 0), is_child_BK

    def copy(self, nodes: NDArray[np.int64]) -> None:
        """Counts and masses of these nodes."""
        at = torch.from_numpy(nodes).to(self.rows_V.device)
        self.rows_V[at] = torch.from_numpy(self.trie.rows_beneath[nodes]).to(at.device)
        if self.trie.mass is not None:
            self.weights_V[at] = torch.from_numpy(self.trie.mass[nodes]).to(at.device)
