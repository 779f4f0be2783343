"""FinalMLP: two gated networks, joined by a bilinear form (Mao et al., AAAI 2023, arXiv 2304.00902).

The inputs e are multiplied by f_k = 2 sigmoid(MLP_k(x_k)): x_1 has user, context and sequences, x_2 the candidate's
fields and numbers. The factor 2 starts a gate at 1; a gate of one half would halve all inputs. Streams are o_k =
MLP(f_k e), and the log-odds b + w_1 o_1 + w_2 o_2 + sum over heads j of o_1j' W_j o_2j. Deviations from the paper:
gates read the tables of the streams, where the official code has separate ones; no dropout and no batch normalisation.

`FinalMlpSplit` is ours: each stream sees its own side alone, so the log-odds are a dot product of o_2 with a vector of
the user, and the model is a coarse ranker.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared, towers
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec

STREAMS = ("user", "candidate")  # named for the inputs of their gates


@dataclass(frozen=True, kw_only=True)
class FinalMlp:
    """``hidden``: layers of a stream, ReLU after each; ``heads`` divide the last. ``gate``: hidden units of a gate.

    ``gate`` 0 leaves the gates out, and ``heads`` 0 the bilinear form.
    """

    hidden: tuple[int, ...] = (128, 64)
    heads: int = 4
    gate: int = 64

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        initial = shared.init_inputs(spec, rng)
        width_of = {"user": shared.pooled_user_width(spec), "candidate": shared.candidate_width(spec)}
        width = shared.side_by_side_width(spec)
        labels = len(spec.labels)
        for stream in STREAMS:
            if self.gate:
                layers.init_mlp(initial, rng, f"{stream}.gate", (width_of[stream], self.gate, width))
            sizes = (width, *self.hidden)
            for layer in range(len(self.hidden)):
                layers.init_dense(initial, rng, f"{stream}.stream.{layer}", sizes[layer], sizes[layer + 1])
            layers.init_mlp(initial, rng, f"{stream}.out", (self.hidden[-1], labels))
        if self.heads:
            columns = self.hidden[-1] // self.heads
            weight = rng.normal(0, columns**-0.5, (self.heads, columns, columns, labels))
            initial["fusion"] = (0.1 * weight).astype(np.float32)
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """User, context and the mean of each sequence, side by side, and the gate that reads them, [R, ...]."""
        user = shared.pooled_user(params, spec, batch)
        return {"user": user, "gate": _gate(params, "user", user)} if self.gate else {"user": user}

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        candidate = shared.candidate(params, spec, batch)
        inputs = shared.side_by_side(candidate, state)
        gated = dict.fromkeys(STREAMS, inputs)
        if self.gate:
            gated["user"] = inputs * state["gate"][:, None]
            gated["candidate"] = inputs * _gate(params, "candidate", candidate)
        outputs = {stream: layers.relu(layers.mlp(params, f"{stream}.stream", gated[stream])) for stream in STREAMS}
        logit_RCH = sum(layers.mlp(params, f"{stream}.out", outputs[stream]) for stream in STREAMS)
        return logit_RCH + _bilinear(params["fusion"], *outputs.values()) if self.heads else logit_RCH


@dataclass(frozen=True, kw_only=True)
class FinalMlpSplit:
    """Streams that see one side each. Options as in `FinalMlp`, and `towers.repeats`."""

    hidden: tuple[int, ...] = (128, 64)
    heads: int = 4
    gate: int = 64

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        initial = shared.init_inputs(spec, rng)
        towers.init_user(initial, rng, spec)
        towers.init_repeats(initial, rng, spec)
        labels = len(spec.labels)
        for stream, width in (("user", towers.user_width(spec)), ("candidate", towers.candidate_width(spec))):
            layers.init_mlp(initial, rng, f"{stream}.gate", (width, self.gate, width))
            sizes = (width, *self.hidden)
            for layer in range(len(self.hidden)):
                layers.init_dense(initial, rng, f"{stream}.stream.{layer}", sizes[layer], sizes[layer + 1])
            layers.init_mlp(initial, rng, f"{stream}.out", (self.hidden[-1], labels))
        columns = self.hidden[-1] // self.heads
        initial["fusion"] = rng.normal(0, 0.1 * columns**-0.5, (self.heads, columns, columns, labels)).astype(
            np.float32
        )
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """The vector w_2 + W' o_1 of the user, [R, D, 1, H], the level b + w_1 o_1 [R, H], and `towers.repeats`."""
        output_RD = self._stream(params, "user", towers.user(params, spec, batch))
        heads, columns, _, labels = params["fusion"].shape
        parts = [
            (output_RD[:, head * columns : (head + 1) * columns] @ params["fusion"][head].reshape(columns, -1))
            for head in range(heads)
        ]
        vector_RDH = layers.concat(parts).reshape(len(output_RD), heads * columns, labels)
        level_RH = layers.mlp(params, "user.out", output_RD) + params["candidate.out.0.bias"]
        state = {"vectors": (vector_RDH + params["candidate.out.0.weight"])[:, :, None], "level": level_RH}
        return state | towers.repeats(params, spec, batch)

    def vectors(self, params: Params, spec: FeatureSpec, batch: Batch) -> Array:
        """The outputs o_2 of the candidates' stream, [R, C, D]."""
        return self._stream(params, "candidate", towers.candidate_inputs(params, spec, batch))

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        return towers.score(spec, state, self.vectors(params, spec, batch), batch.field_RCK[..., 0])

    def _stream(self, params: Params, stream: str, x: Array) -> Array:
        return layers.relu(layers.mlp(params, f"{stream}.stream", x * _gate(params, stream, x)))


def _gate(params: Params, stream: str, x: Array) -> Array:
    """Factors of all inputs, about 1 at the start."""
    return 2 * layers.sigmoid(layers.mlp(params, f"{stream}.gate", x))


def _bilinear(weight: Array, first: Array, second: Array) -> Array:
    """Sum over heads of o_1j' W_j o_2j, [..., H]; ``weight`` [heads, W, W, H]."""
    heads, columns, _, labels = weight.shape
    total = 0
    for head in range(heads):
        part = slice(head * columns, (head + 1) * columns)
        product = (first[..., part] @ weight[head].reshape(columns, columns * labels)).reshape(
            (*first.shape[:-1], columns, labels)
        )
        total = total + (product * second[..., part, None]).sum(-2)
    return total
