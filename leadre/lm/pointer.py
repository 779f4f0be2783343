"""A pointer beside the language model's head: attention over the objects in the prompt, as a second opinion on codes.

Much of what people act on next they acted on before. A cut-down language model takes very long to learn to repeat, as
every object has to find its own way through the weights; a pointer repeats from the first step and learns only where to
look (pointer networks and their mixtures: See et al., arXiv 1704.04368; Merity et al., arXiv 1609.07843). At each
level it spreads its probability over the codes of those prompt objects that are live in the request and agree with the
codes written so far, so what it proposes can always be finished. Untrained, it answers with the user's own counts,
those of the visits and those that the words of frequency before the long-term interests tell.

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
COUNT_WORDS = 8  # room for so many words of frequency
NO_WORD = -2
FADE_POSITIONS = 256.0  # the unit of distance; the learnt fade starts at a factor of e over four of them


@dataclass(frozen=True)
class PointerSources:
    """What of each thread can be repeated: ``keys_BTP``, and the codes of the object at each position (-1: none).

    ``counts_BT`` is added to the scores: the logarithm of how many times a position counts. ``rows_each`` is how many
    rows look at each thread, where that is the same for all; 0 = as they come.
    """

    keys_BTP: Tensor
    codes_BTL: Tensor
    counts_BT: Tensor
    rows_each: int = 0


class Pointer(nn.Module):
    """Where to look (query, key, fade) and how much to trust it (gate); both from the hidden state.

    An object counts once, or as many times as the word before it says (`start_counts`), which is learnt from there.
    """

    count_words_W: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count_words_W", torch.full((COUNT_WORDS,), NO_WORD))
        self.log_counts_W = nn.Parameter(torch.zeros(COUNT_WORDS))
        self.query, self.key = nn.Linear(width, WIDTH, bias=False), nn.Linear(width, WIDTH, bias=False)
        self.gate = nn.Linear(width, 1)
        self.fade = nn.Parameter(torch.tensor(0.25))
        nn.init.normal_(self.query.weight, std=0.02)
        nn.init.normal_(self.key.weight, std=0.02)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 1.0)

    @torch.no_grad()
    def start_counts(self, counts: Mapping[int, float]) -> None:
        """Let objects behind these words (token IDs) count so many times; at most `COUNT_WORDS` words."""
        words = list(counts)
        self.count_words_W[: len(words)] = torch.tensor(words)
        self.log_counts_W[: len(words)] = torch.tensor([counts[word] for word in words]).log()

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
        log_worth_NT: Tensor,
        level: int,
    ) -> Tensor:
        """Log-probabilities [N, C] of the mixture of the head's ``log_p_NC`` and the pointer.

        ``thread_N`` is the thread of each row. ``log_worth_NT`` is added to the scores of its positions, and is -inf
        unless a position holds an object that is live, agrees with the codes written so far, and stands before the
        request. Where there is none, the head decides.
        """
        may_NT = log_worth_NT > -torch.inf
        weight_NT = torch.softmax(self._scores(hidden_ND, sources, thread_N, log_worth_NT), dim=-1) * may_NT
        codes_NT = sources.codes_BTL[thread_N, :, level].clamp(min=0)
        copied_NC = torch.zeros_like(log_p_NC).scatter_add(1, codes_NT, weight_NT)
        # a code that nothing in the prompt carries has no logarithm; a floor far below any probability keeps its slope
        log_copied_NC = torch.where(copied_NC > 0, copied_NC, 1e-30).log()
        gate_N1 = self.gate(hidden_ND)
        mixed = torch.logaddexp(F.logsigmoid(-gate_N1) + log_p_NC, F.logsigmoid(gate_N1) + log_copied_NC)
        mixed = torch.where(torch.isfinite(log_p_NC), mixed, -torch.inf)
        return torch.where(may_NT.any(-1, keepdim=True), mixed, log_p_NC)

    def _scores(self, hidden_ND: Tensor, sources: PointerSources, thread_N: Tensor, log_worth_NT: Tensor) -> Tensor:
        """Attention scores [N, T]: likeness of query and key, less for what was read long before the last source."""
        query_NP = self.query(hidden_ND) * WIDTH**-0.5
        if sources.rows_each:
            regular_BMP = query_NP.view(-1, sources.rows_each, WIDTH)
            scores = torch.bmm(regular_BMP, sources.keys_BTP.transpose(1, 2)).flatten(0, 1)
        else:  # rows come thread by thread
            scores = torch.cat([query_NP[thread_N == b] @ keys.T for b, keys in enumerate(sources.keys_BTP)])
        scores = scores + sources.counts_BT[thread_N] + log_worth_NT
        may_NT = log_worth_NT > -torch.inf
        places = torch.arange(may_NT.shape[1], device=may_NT.device)
        last_N1 = (places * may_NT).amax(-1, keepdim=True)
        distance = (last_N1 - places).clamp(min=0) / FADE_POSITIONS
        return (scores - self.fade * distance).masked_fill(~may_NT, torch.finfo(scores.dtype).min)
