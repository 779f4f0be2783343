"""INFNet: fields, behaviours and tasks as tokens, which a few proxies of each kind read and gate (Kuaishou, 2025).

Tokens are C of the fields, S of the behaviours, and T, one for each task (label), learnt. Proxies are a few tokens of a
kind: P_C = MLP(all of C), P_S the mean of a layer on the behaviours of each sequence, P_T learnt. In a block proxies
and tasks read the tokens of the other kinds, with CA(Q, X) = softmax(Q W_Q (X W_K)^T / sqrt(W)) X W_V:

    P_C += CA(P_C, S) + CA(P_C, T)      P_S += CA(P_S, C) + CA(P_S, T)
    P_T += CA(P_T, C) + CA(P_T, S)        T += CA(T, C) + CA(T, S)

Then C is multiplied by sigmoid(MLP(P_C)), a factor for each column, and S and T alike (proxy gated units). The log-odds
of a task are an MLP of its token after the last block, so each task reads fields and behaviours that concern it. The
cost grows with proxies times tokens, not with the square of the tokens. Deviations from the paper:

- Proxies and tasks keep their values (+=): the paper's text has residuals, its formulas have none. Behaviours are
  averaged, as a sum would grow with the length of a history. Gates read the new proxies, which the paper leaves open,
  and are 2 sigmoid, which starts near 1.
- All readers of a kind share its W_K and W_V. W_K and the gates are applied to the query and to the weighted mean, so
  no behaviour is multiplied by the gate of a candidate.
- A behaviour has the time since it and the count of its position. Fields include numbers, user and context.
- In the last block tasks and their proxies alone read, as the other proxies would not be read again.

Letters: R requests, C candidates, L behaviours, N reading tokens, M tokens, W width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch, SequenceBatch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared, tokens
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec

READS: Mapping[str, tuple[str, ...]] = {  # the kinds of tokens that proxies (of fields, ...) and tasks read
    "fields": ("events", "tasks"),
    "events": ("fields", "tasks"),
    "tasks": ("fields", "events"),
    "task_proxies": ("fields", "events"),
}


@dataclass(frozen=True)
class _Read:
    """Tokens that are read: [R, C, M, W], or [R, M, W] of all candidates, with a gate for each column."""

    tokens: Array
    gate: Array = 1.0
    mask: Array = None

    def gated(self, gate: Array) -> _Read:
        """The tokens with one more gate."""
        return replace(self, gate=self.gate * gate)

    def mean(self, query: Array) -> Array:
        """The mean of gated tokens, weighed by queries [R, C, N, W] for gated tokens."""
        query = query * self.gate
        shape = query.shape
        if self.tokens.ndim == 3:
            query = query.reshape(shape[0], -1, shape[-1])
        weight = layers.softmax(query @ layers.transposed(self.tokens) / shape[-1] ** 0.5, self.mask)
        mean = weight @ self.tokens
        return (mean.reshape(shape) if self.tokens.ndim == 3 else mean) * self.gate


@dataclass(frozen=True, kw_only=True)
class InfNet:
    """``blocks``, two or more, on tokens of ``width``. ``hidden``: units of the last network of a task.

    ``field_proxies``, ``task_proxies``: how many; events have one for each sequence. ``has_tasks`` False leaves the
    tokens of tasks out, and the last networks read the proxies of fields and events.
    """

    blocks: int = 2
    width: int = 16
    field_proxies: int = 4
    task_proxies: int = 2
    hidden: tuple[int, ...] = (64,)
    has_tasks: bool = True

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        assert self.blocks > 1, "the proxies of a block gate the tokens of the next one"
        width = self.width
        initial = shared.init_inputs(spec, rng)
        tokens.init_tokens(initial, rng, spec, width)
        shared.init_gaps(initial, rng, width)
        layers.init_dense(initial, rng, "token.count", 1, width)
        proxies = self.field_proxies * width
        layers.init_dense(initial, rng, "proxy.user", len(spec.user_tables) * width, proxies)
        layers.init_dense(initial, rng, "proxy.candidate", tokens.candidate_count(spec) * width, proxies)
        layers.init_dense(initial, rng, "proxy.fields", proxies, proxies)
        for part in spec.sequences:
            layers.init_dense(initial, rng, f"proxy.sequence.{part.name}", width, width)
        if self.has_tasks:
            initial["proxy.tasks"] = rng.normal(0, 1, self.task_proxies * width).astype(np.float32)
            for label in spec.labels:
                initial[f"task.{label}"] = rng.normal(0, 1, width).astype(np.float32)
        for block in range(self.blocks):
            self._init_block(initial, rng, spec, block)
        inputs = width if self.has_tasks else proxies + len(spec.sequences) * width
        for label in spec.labels:
            layers.init_mlp(initial, rng, f"head.{label}", (inputs, *self.hidden, 1))
        return initial

    def _init_block(self, initial: Initial, rng: np.random.Generator, spec: FeatureSpec, block: int) -> None:
        reading = self._reading(spec, block)
        names = [f"query.{name}" for name in reading]
        for kind in self._kinds(spec):
            if any(kind in READS[name] for name in reading):
                names.append(f"value.{kind}")
                if kind != "tasks" or len(spec.labels) > 1:  # a single token has all the attention without a key
                    names.append(f"key.{kind}")
        for name in names:
            weight = rng.normal(0, self.width**-0.5, (self.width, self.width))
            initial[f"block.{block}.{name}"] = weight.astype(np.float32)
        counts = {"fields": self.field_proxies, "events": len(spec.sequences), "task_proxies": self.task_proxies}
        for name in self._gating(spec, block):
            sizes = (counts[name] * self.width, self.width, self.width)
            layers.init_mlp(initial, rng, f"block.{block}.gate.{name}", sizes)

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Tokens of user and context with their part of the proxies, [R, ...]; behaviours [R, L, W] with theirs."""
        fields = tokens.user_tokens(params, spec, batch)
        state = {"fields": fields, "proxy": layers.dense(params, "proxy.user", fields)}
        events: list[Array] = []
        masks: list[Array] = []
        proxies: list[Array] = []
        for part in spec.sequences:
            sequence = batch.sequences[part.name]
            event_RTW = _behaviours(params, spec, part.name, sequence)
            events.append(_flat(event_RTW))
            masks.append(sequence.mask_RT)
            hidden_RTW = layers.relu(layers.dense(params, f"proxy.sequence.{part.name}", event_RTW))
            proxies.append(shared.mean_pool(hidden_RTW, sequence))
        if events:
            state["events"] = self._tokens(layers.concat(events))
            state["mask"] = layers.concat(masks)
            state["proxy.events"] = layers.concat(proxies)
        return state

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        candidate = tokens.candidate_tokens(params, spec, batch)
        read = {"fields": _Read(self._tokens(layers.concat([candidate, state["fields"][:, None]])))}
        hidden = layers.relu(layers.dense(params, "proxy.candidate", candidate) + state["proxy"][:, None])
        readers = {"fields": self._tokens(layers.dense(params, "proxy.fields", hidden))}
        if spec.sequences:
            read["events"] = _Read(state["events"], mask=state["mask"][:, None])
            readers["events"] = self._tokens(state["proxy.events"][:, None])
        if self.has_tasks:
            tasks = layers.concat([params[f"task.{label}"] for label in spec.labels])
            readers["tasks"] = self._tokens(tasks[None, None])
            readers["task_proxies"] = self._tokens(params["proxy.tasks"][None, None])
        for block in range(self.blocks):
            if self.has_tasks:
                read["tasks"] = _Read(readers["tasks"])
            readers = self._after_reading(params, spec, block, readers, read)
            for proxy in self._gating(spec, block):
                gate = 2 * layers.sigmoid(layers.mlp(params, f"block.{block}.gate.{proxy}", _flat(readers[proxy])))
                if proxy == "task_proxies":
                    readers["tasks"] = readers["tasks"] * gate[..., None, :]
                else:
                    read[proxy] = read[proxy].gated(gate[..., None, :])
        if self.has_tasks:
            inputs = [readers["tasks"][..., k, :] for k in range(len(spec.labels))]
        else:
            inputs = [layers.concat([_flat(proxies) for proxies in readers.values()])] * len(spec.labels)
        logits = [layers.mlp(params, f"head.{label}", x) for label, x in zip(spec.labels, inputs, strict=True)]
        return layers.concat(logits)

    def _after_reading(
        self, params: Params, spec: FeatureSpec, block: int, readers: Mapping[str, Array], read: Mapping[str, _Read]
    ) -> dict[str, Array]:
        """Proxies and tasks, each [R, C, N, W], after they have read the other kinds of tokens."""
        result = dict(readers)
        for kind, kind_tokens in read.items():
            names = [name for name in self._reading(spec, block) if kind in READS[name]]
            if not names:
                continue
            query = self._tokens(
                layers.concat([_flat(readers[name] @ params[f"block.{block}.query.{name}"]) for name in names])
            )
            key = params.get(f"block.{block}.key.{kind}")
            reply = kind_tokens.mean(query if key is None else query @ layers.transposed(key))
            reply = reply @ params[f"block.{block}.value.{kind}"]
            start = 0
            for name in names:
                end = start + readers[name].shape[-2]
                result[name] = result[name] + reply[..., start:end, :]
                start = end
        return result

    def _kinds(self, spec: FeatureSpec) -> list[str]:
        """Kinds of tokens."""
        return ["fields"] + ["events"] * bool(spec.sequences) + ["tasks"] * self.has_tasks

    def _reading(self, spec: FeatureSpec, block: int) -> list[str]:
        """Proxies, and the tasks, that read in a block."""
        if self.has_tasks and block == self.blocks - 1:
            return ["tasks", "task_proxies"]
        return self._kinds(spec) + ["task_proxies"] * self.has_tasks

    def _gating(self, spec: FeatureSpec, block: int) -> list[str]:
        """Proxies that gate tokens at the end of a block: those of tokens that are read later."""
        is_last = block == self.blocks - 1
        return [name for name in self._reading(spec, block) if name != "tasks" and (self.has_tasks or not is_last)]

    def _tokens(self, flat: Array) -> Array:
        """[..., N x W] -> [..., N, W]."""
        return flat.reshape(*flat.shape[:-1], -1, self.width)


def _flat(tokens: Array) -> Array:
    """[..., N, W] -> [..., N x W]."""
    return tokens.reshape(*tokens.shape[:-2], -1)


def _behaviours(params: Params, spec: FeatureSpec, name: str, sequence: SequenceBatch) -> Array:
    """The tokens of a sequence, [R, T, W]."""
    event_RTD = shared.embed(params, spec, sequence.field_RTK)
    event_RTW = layers.dense(params, f"token.sequence.{name}", event_RTD)
    event_RTW = event_RTW + layers.dense(params, "token.count", sequence.count_RT[..., None])
    return event_RTW + layers.lookup(params, "gap", sequence.gap_RT)
