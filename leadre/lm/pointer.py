"""A pointer beside the language model's head: attention over the objects in the prompt, as a second opinion on codes.

Much of what people act on next they acted on before. A cut-down language model takes very long to learn to repeat, as
every object has to find its own way through the weights; a pointer repeats from the first step and learns only where to
look (pointer networks and their mixtures: See et al., arXiv 1704.04368; Merity et al., arXiv 1609.07843). At each
level it spreads its probability over the codes of those prompt objects that are live in the request and agree with the
codes written so far, so what it proposes can always be finished. Untrained, it answers with the user's own counts,
those of the visits and those that the words of frequency before the long-term interests tell.

What is not live says something too, as objects that share codes are alike. So from the same look, by a gate of its own,
the codes of any prompt object gain, wherever something live follows them. That leads to what a user never had but is
like what they had.

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
class Held:
    """What rows find at the positions of their threads, [N, T].

    ``log_worth_NT`` is what a position counts for, as a logarithm: -inf unless it holds an object, stands before the
    request and agrees with the codes written so far. ``live_NT`` says whether that object is live, an answer itself.
    """

    log_worth_NT: Tensor
    live_NT: Tensor

    def of(self, rows_M: Tensor) -> Held:
        """What these rows find."""
        return Held(self.log_worth_NT[rows_M], self.live_NT[rows_M])

    def after(self, agrees_NT: Tensor) -> Held:
        """What is left when each row has written one more code, with which these positions agree."""
        return Held(self.log_worth_NT.where(agrees_NT, -torch.inf), self.live_NT)


@dataclass(frozen=True)
class Sources:
    """What of each thread can be repeated: ``keys_BTP``, and the codes of the object at each position (-1: none).

    ``counts_BT`` is added to the scores: the logarithm of how many times a position counts. ``rows_each`` is how many
    rows look at each thread, where that is the same for all; 0 = as they come.
    """

    keys_BTP: Tensor
    codes_BTL: Tensor
    counts_BT: Tensor
    rows_each: int = 0


class Pointer(nn.Module):
    """Where to look (query, key, fade) and how much to trust it; all from the hidden state.

    ``gate`` is for objects that can be the answer, ``alike``, which may be left out, for codes that lead to others. An
    object counts once, or as many times as the word before it says (`start_counts`), which is learnt from there.
    """

    count_words_W: Tensor

    def __init__(self, width: int, *, alike: bool) -> None:
        super().__init__()
        self.register_buffer("count_words_W", torch.full((COUNT_WORDS,), NO_WORD))
        self.log_counts_W = nn.Parameter(torch.zeros(COUNT_WORDS))
        self.query, self.key = nn.Linear(width, WIDTH, bias=False), nn.Linear(width, WIDTH, bias=False)
        self.gate, self.alike = nn.Linear(width, 1), nn.Linear(width, 1) if alike else None
        self.fade = nn.Parameter(torch.tensor(0.25))
        nn.init.normal_(self.query.weight, std=0.02)
        nn.init.normal_(self.key.weight, std=0.02)
        for gate, start in ((self.gate, 1.0), (self.alike, -2.0)):
            if gate is not None:
                nn.init.zeros_(gate.weight)
                nn.init.constant_(gate.bias, start)

    @torch.no_grad()
    def start_counts(self, counts: Mapping[int, float]) -> None:
        """Let objects behind these words (token IDs) count so many times; at most `COUNT_WORDS` words."""
        words = list(counts)
        self.count_words_W[: len(words)] = torch.tensor(words)
        self.log_counts_W[: len(words)] = torch.tensor([counts[word] for word in words]).log()

    def sources(self, hidden_BTD: Tensor, codes_BTL: Tensor, ids_BT: Tensor) -> Sources:
        """Keys and counts of all thread positions."""
        before_BT = F.pad(ids_BT[:, :-1], (1, 0), value=NO_WORD + 1)
        counts_BT = ((before_BT[..., None] == self.count_words_W) * self.log_counts_W).sum(-1)
        return Sources(self.key(hidden_BTD), codes_BTL, counts_BT)

    def mix(
        self, log_p_NC: Tensor, hidden_ND: Tensor, sources: Sources, thread_N: Tensor, held: Held, level: int
    ) -> Tensor:
        """Log-probabilities [N, C] of the mixture of the head's ``log_p_NC`` and the pointer.

        ``thread_N`` is the thread of each row. Where it holds nothing, the head decides; where it holds nothing live,
        the head and what is alike.
        """
        scores_NT = self._scores(hidden_ND, sources, thread_N, held)
        codes_NT = sources.codes_BTL[thread_N, :, level].clamp(min=0)
        held_NT = held.log_worth_NT > -torch.inf
        if self.alike is not None:
            leads_NT = held_NT & torch.isfinite(log_p_NC.gather(1, codes_NT))
            log_p_NC = _mixed(log_p_NC, scores_NT, codes_NT, leads_NT, self.alike(hidden_ND))
        return _mixed(log_p_NC, scores_NT, codes_NT, held_NT & held.live_NT, self.gate(hidden_ND))

    def _scores(self, hidden_ND: Tensor, sources: Sources, thread_N: Tensor, held: Held) -> Tensor:
        """Attention scores [N, T]: likeness of query and key, less for what was read long ago; and what it counts."""
        query_NP = self.query(hidden_ND) * WIDTH**-0.5
        if sources.rows_each:
            regular_BMP = query_NP.view(-1, sources.rows_each, WIDTH)
            scores = torch.bmm(regular_BMP, sources.keys_BTP.transpose(1, 2)).flatten(0, 1)
        else:  # rows come thread by thread
            scores = torch.cat([query_NP[thread_N == b] @ keys.T for b, keys in enumerate(sources.keys_BTP)])
        places = torch.arange(scores.shape[1], device=scores.device)
        ago = (len(places) - 1 - places) / FADE_POSITIONS
        return scores + sources.counts_BT[thread_N] + held.log_worth_NT - self.fade * ago


def _mixed(log_p_NC: Tensor, scores_NT: Tensor, codes_NT: Tensor, may_NT: Tensor, gate_N1: Tensor) -> Tensor:
    """Log-probabilities [N, C] with a share, the sigmoid of the gate, for the codes at positions that may have one."""
    scores_NT = scores_NT.masked_fill(~may_NT, torch.finfo(scores_NT.dtype).min)
    weight_NT = torch.softmax(scores_NT, dim=-1) * may_NT
    copied_NC = torch.zeros_like(log_p_NC).scatter_add(1, codes_NT, weight_NT)
    # a code that nothing in the prompt carries has no logarithm; a floor far below any probability keeps its slope
    log_copied_NC = torch.where(copied_NC > 0, copied_NC, 1e-30).log()
    mixed = torch.logaddexp(F.logsigmoid(-gate_N1) + log_p_NC, F.logsigmoid(gate_N1) + log_copied_NC)
    mixed = torch.where(torch.isfinite(log_p_NC), mixed, -torch.inf)
    return torch.where(may_NT.any(-1, keepdim=True), mixed, log_p_NC)
