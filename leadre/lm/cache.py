"""Keys and values: those of prompts, which all beams share where they lie, and the few that beams have of their own.

Letters: B threads, T positions, D width, N rows (of a prompt, or beams), H heads, G key-value heads, E width of a head,
S codes that a beam has written, M the most beams of any one thread, K keys.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leadre.lm.attention import CHUNK
from leadre.lm.layout import Ids
from leadre.lm.prefix import PrefixBlock, PrefixCache
from leadre.lm.runner import Runner


class PromptCache:
    """Keys and values of threads, padded at their ends: [B, G, T, E] a layer. ``prefixes`` may know how some begin."""

    def __init__(self, runner: Runner, threads: list[Ids], device: torch.device, prefixes: PrefixCache | None) -> None:
        self.runner, self.prefixes, self.threads = runner, prefixes, threads
        self.lengths = [len(ids) for ids in threads]
        self.names = [prefixes.names(ids) if prefixes else [] for ids in threads]
        self.blocks = [prefixes.get(names) if prefixes else [] for names in self.names]
        self.starts = [prefixes.positions * len(blocks) if prefixes else 0 for blocks in self.blocks]
        _, G, E = runner.heads
        shape = (runner.layers, len(threads), G, max(self.lengths), E)
        self.keys = torch.empty(shape, dtype=runner.dtype, device=device)
        self.values = torch.empty(shape, dtype=runner.dtype, device=device)

    def read(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Hidden states [B, T, D] of the threads' positions, zeros are padding; ``embed`` is IDs [N] -> rows [N, D]."""
        device = self.keys.device
        self._recall()
        spans = list(zip(self.starts, self.lengths, strict=True))
        fresh = [ids[start:].astype(np.int64) for ids, start in zip(self.threads, self.starts, strict=True)]
        hidden_ND = embed(torch.from_numpy(np.concatenate(fresh)).to(device))
        if len(hidden_ND):  # else every position is known
            # for the square of scores that ends a block of queries: -inf where a key lies ahead
            self._ahead_NK = torch.full((CHUNK, CHUNK), -torch.inf, dtype=self.keys.dtype, device=device).triu(1)
            positions_N = torch.cat([torch.arange(start, length, device=device) for start, length in spans])
            hidden_ND = self.runner(hidden_ND, positions_N, self._attend)
        parts = hidden_ND.split([length - start for start, length in spans])
        known = [[block.hidden_PD for block in blocks] for blocks in self.blocks]
        hidden = [torch.cat([*old, new]) for old, new in zip(known, parts, strict=True)]
        if self.prefixes:
            self._keep(self.prefixes, hidden)
        return torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)

    def _recall(self) -> None:
        """Put down what the cache knows, and zeros for padding: values of weight zero must be numbers still."""
        for b, (blocks, length) in enumerate(zip(self.blocks, self.lengths, strict=True)):
            self.keys[:, b, :, length:] = self.values[:, b, :, length:] = 0
            for n, block in enumerate(blocks):
                part = slice(n * len(block.hidden_PD), (n + 1) * len(block.hidden_PD))
                self.keys[:, b, :, part] = block.keys
                self.values[:, b, :, part] = block.values

    def _keep(self, prefixes: PrefixCache, hidden: list[Tensor]) -> None:
        """Give the blocks that were read to the cache."""
        for b, (names, blocks) in enumerate(zip(self.names, self.blocks, strict=True)):
            for first in range(self.starts[b], prefixes.positions * len(names), prefixes.positions):
                part = slice(first, first + prefixes.positions)
                keys, values = self.keys[:, b, :, part].clone(), self.values[:, b, :, part].clone()
                blocks.append(PrefixBlock(keys, values, hidden[b][part].clone()))
            prefixes.put(names, blocks)

    def _attend(self, layer: int, query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor) -> Tensor:
        """Causal attention inside each thread."""
        mixed, before = torch.empty_like(query_NHE), 0
        for b, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            rows = slice(before, before + length - start)
            self.keys[layer, b, :, start:length] = key_NGE[rows].transpose(0, 1)
            self.values[layer, b, :, start:length] = value_NGE[rows].transpose(0, 1)
            for first in range(start, length, CHUNK):
                last = min(first + CHUNK, length)
                block = slice(before + first - start, before + last - start)
                keys, values = self.keys[layer, b : b + 1, :, :last], self.values[layer, b : b + 1, :, :last]
                ahead_NK = self._ahead_NK[: last - first, : last - first]
                mixed[block] = attend(query_NHE[None, block], keys, values, ahead_NK[None])[0]
            before += length - start
        return mixed


class BeamCache:
    """Rows that continue prompts: at first ``thread_N`` and ``end_N`` say where, then each call of `grow` adds a code.

    Rows of one thread stand side by side.
    """

    def __init__(self, prompts: PromptCache, thread_N: Tensor, end_N: Tensor) -> None:
        self.prompts, self.thread_N, self.end_N, self.written = prompts, thread_N, end_N, 0
        shape = (prompts.runner.layers, len(thread_N), 0, *prompts.keys.shape[2::2])
        self.keys, self.values = prompts.keys.new_empty(shape), prompts.keys.new_empty(shape)  # [layers, N, S, G, E]

    def grow(self, rows_ND: Tensor, parent_N: Tensor) -> Tensor:
        """Hidden states [N, D] of embedded codes that continue the rows ``parent_N``, ascending, of the call before."""
        self.thread_N, self.end_N = self.thread_N[parent_N], self.end_N[parent_N]
        own = (self.keys, self.values)
        self.keys, self.values = (F.pad(part[:, parent_N], (0, 0, 0, 0, 0, 1)) for part in own)
        B, T = len(self.prompts.lengths), self.prompts.keys.shape[3]
        counts = torch.bincount(self.thread_N, minlength=B)
        slot_N = torch.arange(len(parent_N), device=parent_N.device) - (counts.cumsum(0) - counts)[self.thread_N]
        self._place = (self.thread_N, slot_N)
        self._shape = (B, int(counts.max()))
        unread_NT = torch.arange(T, device=parent_N.device) > self.end_N[:, None]
        bias_NT = torch.zeros_like(unread_NT, dtype=self.keys.dtype).masked_fill_(unread_NT, -torch.inf)
        self._bias_BMT = self._gather(bias_NT)
        positions_N = self.end_N + 1 + self.written
        hidden_ND = self.prompts.runner(rows_ND, positions_N, self._attend)
        self.written += 1
        return hidden_ND

    def _attend(self, layer: int, query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor) -> Tensor:
        """Attention over the thread up to the row's end and the row's own codes."""
        self.keys[layer, :, -1], self.values[layer, :, -1] = key_NGE, value_NGE
        own = self._gather(self.keys[layer]), self._gather(self.values[layer])
        mixed_BMHE = attend(
            self._gather(query_NHE), self.prompts.keys[layer], self.prompts.values[layer], self._bias_BMT, own
        )
        return mixed_BMHE[self._place]

    def _gather(self, rows: Tensor) -> Tensor:
        """Rows [N, ...] as [B, M, ...], zeros where a thread has fewer."""
        if len(rows) == self._shape[0] * self._shape[1]:
            return rows.view(*self._shape, *rows.shape[1:])
        table = rows.new_zeros(*self._shape, *rows.shape[1:])
        table[self._place] = rows
        return table


def attend(
    query_BNHE: Tensor,
    key_BGTE: Tensor,
    value_BGTE: Tensor,
    bias_BNK: Tensor,
    own_BNSGE: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention [B, N, H, E] over the keys of the thread and, where given, each row's own; a key serves H / G heads.

    The bias is added to the scores of the last K keys. Scores and weights keep the type of the products, which rounds
    them anyway: turning them into float32 and back would cost several times the products.
    """
    B, N, H, E = query_BNHE.shape
    G, T = key_BGTE.shape[1:3]
    query = (query_BNHE * E**-0.5).view(B, N, G, H // G, E).permute(0, 2, 3, 1, 4)  # [B, G, H / G, N, E]
    scores = torch.bmm(query.reshape(B * G, -1, E), key_BGTE.flatten(0, 1).transpose(1, 2)).view(B, G, H // G, N, T)
    scores[..., T - bias_BNK.shape[-1] :] += bias_BNK[:, None, None].to(scores.dtype)
    if own_BNSGE is not None:  # a handful of keys a row: products of vectors
        key, value = (part.permute(0, 3, 1, 2, 4)[:, :, None] for part in own_BNSGE)  # [B, G, 1, N, S, E]
        scores = torch.cat([scores, (query[..., None, :] * key).sum(-1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)
    mixed = torch.bmm(weights[..., :T].reshape(B * G, -1, T), value_BGTE.flatten(0, 1)).view(B, G, H // G, N, E)
    if own_BNSGE is not None:
        mixed = mixed + (weights[..., T:, None] * value).sum(-2)
    return mixed.permute(0, 3, 1, 2, 4).reshape(B, N, H, E)
