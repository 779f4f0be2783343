"""DIEN: interests drift, so recurrent networks read events in order (Zhou et al., AAAI 2019, arXiv 1809.03672).

A GRU reads the events, h_t = GRU(e_t). An auxiliary loss makes each state predict the next event among others: -log
sigmoid(h_t e_t+1) - log(1 - sigmoid(h_t n)), n an event of another user. A candidate v weighs the states, a_t = softmax
over t of h_t W v, and a second GRU, the AUGRU, follows those that concern it: its update gate is u_t a_t, so s_t =
(1 - a_t u_t) s_t-1 + a_t u_t s~_t. The last layers read v, s_T, s_T * v, and the mean of the events.

The AUGRU of the official code multiplies the wrong gate: it is an ordinary GRU where the attention is 0. Here attention
0 leaves the state as it is, as in the paper, so padding, which has no attention, changes nothing. Deviations from the
paper:

- The events are those of the first sequence of the spec, the newest ads, each with the time since it as well.
- The auxiliary loss is a mean over the real events of each user; that of the official code is one over padding too.
- ReLU in place of Dice, which reads batch statistics.

The AUGRU is T steps for each candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec

GATES = 3  # of a GRU: update, reset, candidate state


@dataclass(frozen=True, kw_only=True)
class Dien:
    """``alpha``: weight of the auxiliary loss. ``evolves`` False leaves out the AUGRU: s_T is the last h_t."""

    alpha: float = 1.0
    evolves: bool = True

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        width = shared.width(spec)
        initial = shared.init_inputs(spec, rng)
        shared.init_gaps(initial, rng, width)
        for name in ("interest", "evolution") if self.evolves else ("interest",):
            layers.init_dense(initial, rng, f"{name}.input", width, GATES * width)
            recurrent = rng.normal(0, width**-0.5, (width, GATES * width))
            initial[f"{name}.state"] = recurrent.astype(np.float32)
        if self.evolves:
            initial["attention"] = rng.normal(0, width**-0.5, (width, width)).astype(np.float32)
        shared.init_head(initial, rng, spec, 4 * width)
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Interests h [R, T, D], the part of each in the gates of the AUGRU [R, T, 3 D], and the mean event [R, D]."""
        sequence = batch.sequences[spec.sequences[0].name]
        event_RTD = shared.embed(params, spec, sequence.field_RTK)
        timed_RTD = event_RTD + layers.lookup(params, "gap", sequence.gap_RT)
        is_event_RT = layers.as_floats(sequence.mask_RT, event_RTD)
        gate_RTG = layers.dense(params, "interest.input", timed_RTD)
        interest_RD = event_RTD[:, 0] * 0
        interests = []
        for t in range(event_RTD.shape[1]):
            interest_RD = _step(gate_RTG[:, t], interest_RD, params["interest.state"], is_event_RT[:, t, None])
            interests.append(interest_RD)
        state = {"user": shared.user_vector(params, spec, batch), "mean": shared.mean_pool(event_RTD, sequence)}
        state["interest"] = layers.stack(interests)
        if self.evolves:
            state["gates"] = layers.dense(params, "evolution.input", state["interest"])
        return state

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        v_RCD = shared.embed(params, spec, batch.field_RCK)
        interest_RTD = state["interest"]
        final_RCD = interest_RTD[:, -1:] + 0 * v_RCD
        if self.evolves:
            sequence = batch.sequences[spec.sequences[0].name]
            fit_RCT = (v_RCD @ layers.transposed(params["attention"])) @ layers.transposed(interest_RTD)
            attention_RCT = layers.softmax(fit_RCT, sequence.mask_RT[:, None])
            final_RCD = 0 * v_RCD
            for t in range(interest_RTD.shape[1]):
                gate_R1G = state["gates"][:, t, None]
                final_RCD = _step(gate_R1G, final_RCD, params["evolution.state"], attention_RCT[..., t, None])
        return shared.head(params, state, batch, [v_RCD, final_RCD, final_RCD * v_RCD, state["mean"][:, None]])

    def auxiliary(
        self, params: Params, spec: FeatureSpec, state: State, batch: Batch, rng: np.random.Generator
    ) -> Array:
        """The mean over the events of each user, summed; negatives are the events of another user of the batch."""
        sequence = batch.sequences[spec.sequences[0].name]
        event_RTD = shared.embed(params, spec, sequence.field_RTK)
        requests, length = event_RTD.shape[:2]
        if requests < 2 or length < 2 or not self.alpha:
            return 0 * event_RTD.sum()
        other_R = (np.arange(requests) + rng.integers(1, requests)) % requests
        next_RT = layers.as_floats(sequence.mask_RT, event_RTD)[:, 1:]
        interest_RTD = state["interest"][:, :-1]
        loss_RT = layers.softplus(-(interest_RTD * event_RTD[:, 1:]).sum(-1))
        is_negative_RT = layers.as_floats(sequence.mask_RT, event_RTD)[other_R, 1:]
        loss_RT = loss_RT + is_negative_RT * layers.softplus((interest_RTD * event_RTD[other_R, 1:]).sum(-1))
        events_R = next_RT.sum(-1)
        mean_R = (loss_RT * next_RT).sum(-1) / (events_R + layers.as_floats(events_R == 0, events_R))
        return self.alpha * mean_R.sum()


def _step(gate: Array, state: Array, weight: Array, attention: Array) -> Array:
    """A step of a GRU whose update gate is multiplied by ``attention``: 0 leaves the state as it is.

    ``gate`` [..., 3 D]: the parts of the input in update gate, reset gate and candidate state; ``weight`` [D, 3 D].
    """
    width = state.shape[-1]
    recurrent = state @ weight[:, : 2 * width]
    update = attention * layers.sigmoid(gate[..., :width] + recurrent[..., :width])
    reset = layers.sigmoid(gate[..., width : 2 * width] + recurrent[..., width:])
    proposed = layers.tanh(gate[..., 2 * width :] + (reset * state) @ weight[:, 2 * width :])
    return state + update * (proposed - state)
