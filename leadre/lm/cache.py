"""KV cache: prompt KV shared by all beams of a prompt, plus per-beam KV for generated codes.

Letters: B threads, T positions, D width, N rows (positions of prompts, or beams), H heads, G key-value heads, E width
of a head, S codes that a beam has generated, M the most beams of one thread, K keys.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leadre.lm.attention import CHUNK, PLAIN, ScoreRule
from leadre.lm.layout import Ids
from leadre.lm.prefix import BlockHash, PrefixBlock, PrefixCache
from leadre.lm.runner import BodyRunner


class PromptCache:
    """Keys and values of threads, padded at their ends: [layers, B, G, T, E].

    ``prefix_cache`` supplies the blocks of known beginnings; `prefill` computes the rest and stores it there.
    ``hashes`` are those of the threads (`PrefixCache.hashes`), computed here if None.
    """

    def __init__(
        self,
        runner: BodyRunner,
        threads: list[Ids],
        device: torch.device,
        prefix_cache: PrefixCache | None,
        hashes: list[list[BlockHash]] | None = None,
    ) -> None:
        self.runner = runner
        self.prefix_cache = prefix_cache
        self.threads = threads
        self.lengths = [len(ids) for ids in threads]
        self.hashes = hashes or [prefix_cache.hashes(ids) if prefix_cache else [] for ids in threads]
        self.blocks = [prefix_cache.get(hashes) if prefix_cache else [] for hashes in self.hashes]
        self.num_cached = [prefix_cache.block_size * len(blocks) if prefix_cache else 0 for blocks in self.blocks]
        _, G, E = runner.heads
        shape = (runner.layers, len(threads), G, max(self.lengths), E)
        self.keys = torch.empty(shape, dtype=runner.dtype, device=device)
        self.values = torch.empty(shape, dtype=runner.dtype, device=device)

    def prefill(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Hidden states [B, T, D] of all positions, zeros for padding; ``embed`` maps IDs [N] to rows [N, D]."""
        device = self.keys.device
        self._load_cached()
        spans = list(zip(self.num_cached, self.lengths, strict=True))
        new_ids = [ids[start:].astype(np.int64) for ids, start in zip(self.threads, self.num_cached, strict=True)]
        hidden_ND = embed(torch.from_numpy(np.concatenate(new_ids)).to(device))
        if len(hidden_ND):  # else every position is cached
            # for the last block of queries and keys: -inf if a key is ahead of its query
            self._causal_bias_NK = torch.full((CHUNK, CHUNK), -torch.inf, dtype=self.keys.dtype, device=device).triu(1)
            positions_N = torch.cat([torch.arange(start, length, device=device) for start, length in spans])
            hidden_ND = self.runner(hidden_ND, positions_N, self._attend)
        new_parts = hidden_ND.split([length - start for start, length in spans])
        cached_parts = [[block.hidden_PD for block in blocks] for blocks in self.blocks]
        hidden = [torch.cat([*cached, new]) for cached, new in zip(cached_parts, new_parts, strict=True)]
        if self.prefix_cache:
            self._store_blocks(self.prefix_cache, hidden)
        return torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)

    def _load_cached(self) -> None:
        """Copy the cached blocks, and zero the padding: values of weight zero must still be numbers."""
        for b, (blocks, length) in enumerate(zip(self.blocks, self.lengths, strict=True)):
            self.keys[:, b, :, length:] = self.values[:, b, :, length:] = 0
            for n, block in enumerate(blocks):
                part = slice(n * len(block.hidden_PD), (n + 1) * len(block.hidden_PD))
                self.keys[:, b, :, part] = block.keys
                self.values[:, b, :, part] = block.values

    def _store_blocks(self, prefix_cache: PrefixCache, hidden: list[Tensor]) -> None:
        """Store the blocks that were computed in the prefix cache."""
        for b, (hashes, blocks) in enumerate(zip(self.hashes, self.blocks, strict=True)):
            size = prefix_cache.block_size
            for first in range(self.num_cached[b], size * len(hashes), size):
                part = slice(first, first + size)
                keys = self.keys[:, b, :, part].clone()
                values = self.values[:, b, :, part].clone()
                blocks.append(PrefixBlock(keys, values, hidden[b][part].clone()))
            prefix_cache.put(hashes, blocks)

    def _attend(
        self, layer: int, query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor, rule: ScoreRule = PLAIN
    ) -> Tensor:
        """Causal attention within each thread."""
        mixed_NHE = torch.empty_like(query_NHE)
        first_row = 0
        for b, (start, length) in enumerate(zip(self.num_cached, self.lengths, strict=True)):
            rows = slice(first_row, first_row + length - start)
            self.keys[layer, b, :, start:length] = key_NGE[rows].transpose(0, 1)
            self.values[layer, b, :, start:length] = value_NGE[rows].transpose(0, 1)
            for first in range(start, length, CHUNK):
                last = min(first + CHUNK, length)
                block = slice(first_row + first - start, first_row + last - start)
                bias_1NK = self._causal_bias_NK[None, : last - first, : last - first]
                oldest = 0
                if rule.window is not None and rule.window < last:
                    oldest = max(first - rule.window + 1, 0)
                    bias_1NK = within_window(
                        F.pad(bias_1NK, (first - oldest, 0)),
                        torch.arange(first - oldest, last - oldest, device=bias_1NK.device)[None],
                        rule.window,
                    )
                keys = self.keys[layer, b : b + 1, :, oldest:last]
                values = self.values[layer, b : b + 1, :, oldest:last]
                mixed_NHE[block] = attend(query_NHE[None, block], keys, values, bias_1NK, rule=rule)[0]
            first_row += length - start
        return mixed_NHE


class BeamCache:
    """KV of the codes of N beams that continue prompts; row ``n`` starts after position ``end_N`` of ``thread_N``.

    Each call of `append` adds one code. Rows of one thread are adjacent.
    """

    def __init__(self, prompts: PromptCache, thread_N: Tensor, end_N: Tensor) -> None:
        self.prompts = prompts
        self.thread_N = thread_N
        self.end_N = end_N
        self.num_codes = 0
        shape = (prompts.runner.layers, len(thread_N), 0, *prompts.keys.shape[2::2])  # [layers, N, S, G, E]
        self.keys = prompts.keys.new_empty(shape)
        self.values = prompts.keys.new_empty(shape)

    def append(self, rows_ND: Tensor, parent_N: Tensor) -> Tensor:
        """Hidden states [N, D] of embedded codes that continue the rows ``parent_N`` (ascending) of the last call."""
        self.thread_N = self.thread_N[parent_N]
        self.end_N = self.end_N[parent_N]
        parents = (self.keys, self.values)
        self.keys, self.values = (F.pad(part[:, parent_N], (0, 0, 0, 0, 0, 1)) for part in parents)
        B = len(self.prompts.lengths)
        T = self.prompts.keys.shape[3]
        counts_B = torch.bincount(self.thread_N, minlength=B)
        slot_N = torch.arange(len(parent_N), device=parent_N.device) - (counts_B.cumsum(0) - counts_B)[self.thread_N]
        self._slots = (self.thread_N, slot_N)
        self._shape = (B, int(counts_B.max()))
        is_hidden_NT = torch.arange(T, device=parent_N.device) > self.end_N[:, None]
        bias_NT = torch.zeros_like(is_hidden_NT, dtype=self.keys.dtype).masked_fill_(is_hidden_NT, -torch.inf)
        self._bias_BMT = self._by_thread(bias_NT)
        positions_N = self.end_N + 1 + self.num_codes
        self._positions_BM = self._by_thread(positions_N)
        hidden_ND = self.prompts.runner(rows_ND, positions_N, self._attend)
        self.num_codes += 1
        return hidden_ND

    def _attend(
        self, layer: int, query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor, rule: ScoreRule = PLAIN
    ) -> Tensor:
        """Attention over the thread up to the row's end and over the row's codes."""
        self.keys[layer, :, -1] = key_NGE
        self.values[layer, :, -1] = value_NGE
        beam_kv = self._by_thread(self.keys[layer]), self._by_thread(self.values[layer])
        query_BMHE = self._by_thread(query_NHE)
        bias_BMT = within_window(self._bias_BMT, self._positions_BM, rule.window)
        prompts = self.prompts
        mixed_BMHE = attend(query_BMHE, prompts.keys[layer], prompts.values[layer], bias_BMT, beam_kv, rule)
        return mixed_BMHE[self._slots]

    def _by_thread(self, rows: Tensor) -> Tensor:
        """Rows [N, ...] as [B, M, ...], zeros for the slots of a thread with fewer rows."""
        if len(rows) == self._shape[0] * self._shape[1]:
            return rows.view(*self._shape, *rows.shape[1:])
        table = rows.new_zeros(*self._shape, *rows.shape[1:])
        table[self._slots] = rows
        return table


def within_window(bias_BNT: Tensor, positions_BN: Tensor, window: int | None) -> Tensor:
    """The bias of keys at the positions 0 .. T - 1, with -inf also for keys outside the window of their query."""
    T = bias_BNT.shape[-1]
    if window is None:
        return bias_BNT
    is_outside_BNT = torch.arange(T, device=bias_BNT.device) <= positions_BN[..., None] - window
    return bias_BNT.masked_fill(is_outside_BNT, -torch.inf)


def attend(
    query_BNHE: Tensor,
    key_BGTE: Tensor,
    value_BGTE: Tensor,
    bias_BNK: Tensor,
    beam_kv_BNSGE: tuple[Tensor, Tensor] | None = None,
    rule: ScoreRule = PLAIN,
) -> Tensor:
    """Attention [B, N, H, E] over the keys of the thread and, if given, of each row's codes; a key serves H / G heads.

    The bias is added to the scores of the last K keys of the thread; the window of ``rule`` must be part of it. Of a
    row's codes, which end with its own, those within the window count. Scores and weights keep the type of the
    products, which round them anyway: a conversion to float32 and back would cost several times the products.
    """
    B, N, H, E = query_BNHE.shape
    G, T = key_BGTE.shape[1:3]
    query = (query_BNHE * E**-0.5).view(B, N, G, H // G, E).permute(0, 2, 3, 1, 4)  # [B, G, H / G, N, E]
    scores = torch.bmm(query.reshape(B * G, -1, E), key_BGTE.flatten(0, 1).transpose(1, 2)).view(B, G, H // G, N, T)
    scores = rule.cap(scores)
    scores[..., T - bias_BNK.shape[-1] :] += bias_BNK[:, None, None].to(scores.dtype)
    if beam_kv_BNSGE is not None:  # a handful of keys a row: products of vectors
        near = slice(-rule.window if rule.window else None, None)
        key, value = (
            part[:, :, near].permute(0, 3, 1, 2, 4)[:, :, None] for part in beam_kv_BNSGE
        )  # [B, G, 1, N, S, E]
        scores = torch.cat([scores, rule.cap((query[..., None, :] * key).sum(-1))], dim=-1)
    weights = rule.softmax(scores, (G, H // G, 1, 1))
    mixed = torch.bmm(weights[..., :T].reshape(B * G, -1, T), value_BGTE.flatten(0, 1)).view(B, G, H // G, N, E)
    if beam_kv_BNSGE is not None:
        mixed = mixed + (weights[..., T:, None] * value).sum(-2)
    return mixed.permute(0, 3, 1, 2, 4).reshape(B, N, H, E)
