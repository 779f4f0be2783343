"""Comparison of a body with its own forward pass, before anything is trained on it.

A body computes threads with branches by the attention of `leadre.lm.attention`, and beams by that of `leadre.lm.cache`.
Both must give the hidden states that the model's own forward pass gives. Whether they do depends on the model: on its
masks, its positions, its caches. So a new body computes `PROBE` in all ways, and one that differs is refused.

Letters: T positions, D width, N rows, H heads, G key-value heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leadre.errors import InputError
from leadre.lm.attention import NAME, PLAIN, ScoreRule
from leadre.lm.cache import BeamCache, PromptCache
from leadre.lm.runner import BodyRunner, EagerRunner

TOLERANCE = 1e-3  # of the norm of a hidden state, in float32; rounding alone gives 1e-6 to 1e-5
THREAD, BRANCH = 24, 8  # positions of the probe: one thread, which two branches continue
WINDOW = 8  # windows are cut to this for the comparison, so that the probe is longer than they are
WINDOWS = ("sliding_window", "attention_chunk_size")
FAILURES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)

Embed = Callable[[Tensor], Tensor]  # IDs [...] -> rows [..., D]
Forward = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # `Backbone.states`


@contextmanager
def refusals(model: str) -> Iterator[None]:
    """Turn the errors of foreign code into InputErrors that name the model."""
    advice = "take a model of the table in docs/backbones.md"
    try:
        yield
    except InputError as error:
        raise InputError(f"--backbone: a model of type {model}: {error}; {advice}") from error
    except FAILURES as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"--backbone: a model of type {model} cannot be used ({fault}); {advice}") from error


def probe(words: int) -> tuple[Tensor, Tensor]:
    """(thread [T], branches [2, T]): word IDs, the same for all models of so many words."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, words, THREAD + 2 * BRANCH))
    return ids[:THREAD], ids[THREAD:].view(2, BRANCH)


@torch.no_grad()
def own_states(body: Any, rows_BTD: Tensor | None = None, ids_BT: Tensor | None = None) -> Tensor:
    """Hidden states [2, THREAD + BRANCH, D] of thread and branch, by the body's own forward pass."""
    body.set_attn_implementation("eager")
    with _short_windows(body):
        inputs = {"input_ids": ids_BT} if rows_BTD is None else {"inputs_embeds": rows_BTD}
        states: Tensor = body(**inputs, use_cache=False).last_hidden_state
    return states


def sequences(words: int) -> Tensor:
    """The probe as two plain sequences of IDs: [2, THREAD + BRANCH]."""
    thread_T, branches_2T = probe(words)
    return torch.cat([thread_T.expand(2, -1), branches_2T], dim=1)


@torch.no_grad()
def check(body: Any, words: int, own: Tensor, embed: Embed, forward: Forward, runner: BodyRunner) -> None:
    """Compare training and search with ``own`` (of `own_states`). Raises InputError for a body that differs."""
    _check_layers(body, embed(probe(words)[0]))
    with _short_windows(body):
        _check_equal("training", _trained(words, forward), own)
        _check_equal("search", _searched(words, embed, runner), own)


def check_reloaded(own: Tensor, reloaded: Tensor) -> None:
    """InputError unless the body that `load` makes of the saved config equals the body itself."""
    _check_equal("the saved model", reloaded, own)


def _trained(words: int, forward: Forward) -> Tensor:
    """Hidden states of the probe as one thread with two branches."""
    thread_T, branches_2T = probe(words)
    ids_1T = torch.cat([thread_T, branches_2T.flatten()])[None]
    in_branch = torch.arange(THREAD, THREAD + BRANCH)
    positions_1T = torch.cat([torch.arange(THREAD), in_branch, in_branch])[None]
    same_branch = torch.block_diag(*[torch.ones(BRANCH, BRANCH).tril()] * 2).bool()
    mask_1NK = torch.cat([torch.ones(2 * BRANCH, THREAD, dtype=torch.bool), same_branch], dim=1)[None]
    states_TD = forward(ids_1T, positions_1T, mask_1NK, THREAD)[0]
    return torch.cat([states_TD[:THREAD].expand(2, -1, -1), states_TD[THREAD:].view(2, BRANCH, -1)], dim=1)


def _searched(words: int, embed: Embed, runner: BodyRunner) -> Tensor:
    """Hidden states of the probe as one prompt with two beams."""
    thread_T, branches_2T = probe(words)
    cache = PromptCache(runner, [thread_T.numpy().astype(np.int32)], torch.device("cpu"), None)
    prompt_1TD = cache.prefill(embed)
    both = torch.arange(2)
    beams = BeamCache(cache, torch.zeros_like(both), torch.full_like(both, THREAD - 1))
    steps = [beams.append(embed(branches_2T[:, step]), both) for step in range(BRANCH)]
    return torch.cat([prompt_1TD.expand(2, -1, -1), torch.stack(steps, dim=1)], dim=1)


def _check_layers(body: Any, rows_ND: Tensor) -> None:
    """InputError unless every layer attends once, in order, and all with keys and values of the same shape."""
    if body.config._attn_implementation != NAME:
        raise InputError("its attention is its own code, which cannot be replaced")
    shapes = list[tuple[int, int, int, int]]()
    layers = list[int]()

    def attend(layer: int, query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor, rule: ScoreRule = PLAIN) -> Tensor:
        layers.append(layer)
        shapes.append((query_NHE.shape[1], *key_NGE.shape[1:], value_NGE.shape[2]))
        return torch.zeros(*query_NHE.shape[:2], value_NGE.shape[2])

    runner = EagerRunner(body, torch.float32)
    runner(rows_ND, torch.arange(len(rows_ND)), attend)
    H, G, E = runner.heads
    if layers != list(range(runner.layers)):
        raise InputError(f"only its layers {layers} of {runner.layers} have attention that can be replaced")
    if other := sorted(set(shapes) - {(H, G, E, E)}):
        raise InputError(
            f"a layer has (heads, key-value heads, width of keys, width of values) {other[0]}, not {(H, G, E, E)}"
        )


def _check_equal(name: str, states: Tensor, own: Tensor) -> None:
    difference = float(((states - own).norm(dim=-1) / own.norm(dim=-1)).max())
    if not difference <= TOLERANCE:  # nan differs too
        raise InputError(
            f"hidden states of {name} differ by {difference:.1e} of their norm from those of the model's own forward "
            f"pass (at most {TOLERANCE:.0e})"
        )


@contextmanager
def _short_windows(body: Any) -> Iterator[None]:
    """Cut the windows of attention, which configs and layers hold, to `WINDOW`."""
    changed = [
        (owner, name, value)
        for owner in (body.config, *body.modules())
        for name in WINDOWS
        if isinstance(value := getattr(owner, name, None), int) and value > WINDOW
    ]
    for owner, name, _ in changed:
        setattr(owner, name, WINDOW)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)
