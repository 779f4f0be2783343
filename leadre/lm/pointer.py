"""Pointer: attention over the objects of the prompt, mixed with the distribution of the head over codes.

Users often act again on objects that they acted on before. A small language model learns such repetition slowly, as
every object needs its own way through the weights; a pointer repeats from the first step and only learns which
positions to attend to (pointer networks and their mixtures: See et al., arXiv 1704.04368; Merity et al., arXiv
1609.07843). At each level the pointer spreads its probability over the codes of the prompt's objects that are live in
the request and agree with the codes generated so far (`keep_agreeing`), so every code it proposes leads to a live
object. Before training its distribution is that of the user's own counts: visits in the prompt, and the frequency words
before the long-term interests.

Letters: N targets or beams, M beams of a thread, B threads, T thread positions, D width, P pointer width, L levels,
C codes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 64
COUNT_WORDS = 8  # at most this many frequency words
NO_WORD = -2
GATE = 1.0  # log-odds of the pointer's share in the mixture before training
GATE_BESIDE_LEARNT = -2.0  # the same beside a learnt prior, which counts the user's own actions already
FADE_POSITIONS = 256.0  # unit of distance; the learnt fade starts at a factor of e over four units


@dataclass(frozen=True)
class PointerSources:
    """Positions of each thread that may be repeated: keys, and the codes of the object at each position (-1: none).

    ``counts_BT`` is added to the scores: the logarithm of how many times a position counts. ``rows_each`` is the number
    of rows per thread if all threads have the same number; 0 = rows come thread by thread, in any number.
    """

    keys_BTP: Tensor
    codes_BTL: Tensor
    counts_BT: Tensor
    rows_each: int = 0


class Pointer(nn.Module):
    """Attention (query, key, fade) and its weight in the mixture (gate), both computed from the hidden state.

    An object counts once, or as many times as the frequency word before it means (`start_counts`); training adjusts
    these counts.
    """

    count_words_W: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count_words_W", torch.full((COUNT_WORDS,), NO_WORD))
        self.log_counts_W = nn.Parameter(torch.zeros(COUNT_WORDS))
        self.query = nn.Linear(width, WIDTH, bias=False)
        self.key = nn.Linear(width, WIDTH, bias=False)
        self.gate = nn.Linear(width, 1)
        self.fade = nn.Parameter(torch.tensor(0.25))
        nn.init.normal_(self.query.weight, std=0.02)
        nn.init.normal_(self.key.weight, std=0.02)
        nn.init.zeros_(self.gate.weight)
        self.start_gate(GATE)

    @torch.no_grad()
    def start_counts(self, counts: Mapping[int, float]) -> None:
        """Set how many times an object counts behind each frequency word (token ID); at most `COUNT_WORDS` words."""
        words = list(counts)
        self.count_words_W[: len(words)] = torch.tensor(words)
        self.log_counts_W[: len(words)] = torch.tensor([counts[word] for word in words]).log()

    def start_gate(self, log_odds: float) -> None:
        """Set the pointer's share in the mixture before training."""
        nn.init.constant_(self.gate.bias, log_odds)

    def sources(self, hidden_BTD: Tensor, codes_BTL: Tensor, ids_BT: Tensor) -> PointerSources:
        """Keys and counts of all thread positions."""
        before_BT = F.pad(ids_BT[:, :-1], (1, 0), value=NO_WORD + 1)
        counts_BT = ((before_BT[..., None] == self.count_words_W) * self.log_counts_W).sum(-1)
        return PointerSources(self.key(hidden_BTD), codes_BTL, counts_BT)

    def mix(
        self,
        log_p_NC: Tensor,
        hidden_ND: Tensor,
        sources: PointerSources,
        thread_N: Tensor,
        bias_NT: Tensor,
        level: int,
    ) -> Tensor:
        """Log-probabilities [N, C] of the mixture of the head's ``log_p_NC`` and the pointer.

        ``thread_N`` is the thread of each row. ``bias_NT`` is added to the attention scores of its positions. It is
        -inf unless the position holds an object that is live, agrees with the codes generated so far, and comes before
        the request. A row whose biases are all -inf gets the head's distribution.
        """
        is_source_NT = bias_NT > -torch.inf
        weight_NT = torch.softmax(self._scores(hidden_ND, sources, thread_N, bias_NT), dim=-1) * is_source_NT
        codes_NT = sources.codes_BTL[thread_N, :, level].clamp(min=0)
        copied_NC = torch.zeros_like(log_p_NC).scatter_add(1, codes_NT, weight_NT)
        # a code without a source has no logarithm; a floor far below any probability keeps the gradient finite
        log_copied_NC = torch.where(copied_NC > 0, copied_NC, 1e-30).log()
        gate_N1 = self.gate(hidden_ND)
        mixed = torch.logaddexp(F.logsigmoid(-gate_N1) + log_p_NC, F.logsigmoid(gate_N1) + log_copied_NC)
        mixed = torch.where(torch.isfinite(log_p_NC), mixed, -torch.inf)
        return torch.where(is_source_NT.any(-1, keepdim=True), mixed, log_p_NC)

    def _scores(self, hidden_ND: Tensor, sources: PointerSources, thread_N: Tensor, bias_NT: Tensor) -> Tensor:
        """Attention scores [N, T]: query times key, count and bias, minus a fade by distance to the last source."""
        query_NP = self.query(hidden_ND) * WIDTH**-0.5
        if sources.rows_each:
            query_BMP = query_NP.view(-1, sources.rows_each, WIDTH)
            scores = torch.bmm(query_BMP, sources.keys_BTP.transpose(1, 2)).flatten(0, 1)
        else:  # rows come thread by thread
            scores = torch.cat([query_NP[thread_N == b] @ keys.T for b, keys in enumerate(sources.keys_BTP)])
        scores = scores + sources.counts_BT[thread_N] + bias_NT
        is_source_NT = bias_NT > -torch.inf
        positions_T = torch.arange(is_source_NT.shape[1], device=is_source_NT.device)
        last_N1 = (positions_T * is_source_NT).amax(-1, keepdim=True)
        distance = (last_N1 - positions_T).clamp(min=0) / FADE_POSITIONS
        return (scores - self.fade * distance).masked_fill(~is_source_NT, torch.finfo(scores.dtype).min)


def keep_agreeing(bias_NT: Tensor, source_codes_NT: Tensor, code_N: Tensor) -> Tensor:
    """``bias_NT``, with -inf at each position whose object does not carry the code ``code_N`` that the row generated.

    ``source_codes_NT`` are the codes of the objects at one level (`PointerSources.codes_BTL`). Only objects that agree
    with the codes generated so far may be repeated: training, decoding and captured steps share this rule. Dimensions
    before the last may be several ([Q, W, T] with [Q, W]). Shapes alone decide the work, so a CUDA graph may hold it.
    """
    return bias_NT.where(source_codes_NT == code_N[..., None], -torch.inf)
