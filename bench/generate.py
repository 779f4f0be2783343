"""Constrained beam search against `transformers.generate` with `prefix_allowed_tokens_fn`, side by side.

The same SmolLM2-135M at full depth, prompts, live ads, beams and type (bfloat16 where the processor has it); medians of
interleaved rounds. Two live sets of about 10,000 ads on four levels of 256 codes: *crowded* (ten codes a level are in
use, so every beam stays open to the last level) and *spread* (random paths; most beams are finished after two levels
and cost us nothing more). ``of_plain_forward`` is one pass of the Hugging Face body over the prompt and 50 beams of
three steps, divided by our whole call in the crowded search.

    python bench/generate.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from leadre.lm import backbone as backbones
from leadre.lm import pretrained
from leadre.lm.decode import Ask, Searcher
from leadre.lm.layout import Layout
from leadre.semid.trie import build

SIZES, ADS, PROMPT, BATCH = (256, 256, 256, 256), 10_000, 128, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("work"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(10)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    crowded = np.stack([rng.permutation(256)[grid[:, level]] for level in range(4)], axis=1)
    spread = np.unique(rng.integers(0, 256, (ADS, 4)), axis=0)
    found: dict[str, Any] = {}
    for name, codes in (("crowded", crowded), ("spread", spread)):
        found |= {f"{key}_{name}": value for key, value in measure(codes, args, batch=name == "crowded").items()}
    print(json.dumps(found))


def measure(codes_OL: np.ndarray[Any, Any], args: argparse.Namespace, *, batch: bool) -> dict[str, float]:
    """Ratios of medians for one live set."""
    layout = Layout(len(pretrained.tokenizer(source := pretrained.folder_of("smollm2", args.work))), SIZES)
    backbone = backbones.create(source, layout, codes_OL, layers=0, pointer=False)
    torch.nn.init.normal_(backbone.codes_SD, std=float(backbone.words_VD.float().std()))
    searcher = Searcher(backbone.eval())
    reference = plain(backbone).to(searcher.runner.dtype).eval()
    trie, objects = build(codes_OL, SIZES), np.arange(len(codes_OL))
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, layout.words, PROMPT).astype(np.int32) for _ in range(BATCH)]
    allowed = children((layout.words + layout.rows(codes_OL)).tolist())

    def ours(count: int, width: int) -> Any:
        return searcher([(ids, [Ask(PROMPT - 1, trie, objects)]) for ids in prompts[:count]], width)

    def theirs(count: int, width: int) -> Any:
        with torch.inference_mode():
            return reference.generate(
                torch.from_numpy(np.stack(prompts[:count])).long(),
                attention_mask=torch.ones(count, PROMPT, dtype=torch.long),
                prefix_allowed_tokens_fn=lambda _, ids: allowed[tuple(ids[PROMPT:].tolist())],
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=len(SIZES),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                length_penalty=0.0,
                renormalize_logits=True,
            )

    result, live = {}, set(map(tuple, codes_OL.tolist()))
    for width in (50, 20):
        our_s, their_s = interleaved([partial(ours, 1, width), partial(theirs, 1, width)], args.rounds)
        result[f"speedup_beam{width}"] = round(their_s / our_s, 2)
        result[f"ours_s_beam{width}"] = round(our_s, 4)
        overlap = {tuple(codes_OL[row].tolist()) for row in ours(1, width)[0][0].rows[:10]}
        assert overlap <= live and len(overlap) == 10
    if batch:
        our_s, their_s = interleaved([lambda: ours(BATCH, 50), lambda: theirs(BATCH, 50)], 1, warm_up=False)
        result["speedup_batch16"] = round(their_s / our_s, 2)
        rows = torch.zeros(1, PROMPT + 50 * (len(SIZES) - 1), backbone.words_VD.shape[1], dtype=searcher.runner.dtype)

        def forward() -> None:
            with torch.inference_mode():
                reference.model(inputs_embeds=rows)

        plain_s, our_s = interleaved([forward, lambda: ours(1, 50)], 2 * args.rounds + 1)
        result["of_plain_forward"] = round(plain_s / our_s, 2)
    return result


def plain(backbone: backbones.Backbone) -> Any:
    """The same weights as a causal LM of transformers, with rows and head for the codes."""
    config = copy.deepcopy(backbone.body.config)
    words, layout = backbone.layout.words, backbone.layout
    table_VD = torch.cat([backbone.words_VD.float(), backbone.codes_SD.detach()])
    config.vocab_size, config.tie_word_embeddings, config._attn_implementation = len(table_VD), False, "sdpa"
    model = transformers.LlamaForCausalLM(config)
    model.model.load_state_dict(backbone.body.state_dict(), strict=False)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(table_VD)
        model.lm_head.weight.zero_()
        model.lm_head.weight[words : words + layout.codes] = backbone.codes_SD * backbones.LOGIT_SCALE
    return model


def children(paths: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """Prefix -> token IDs that may follow, as a callback of transformers wants them; dead beams may go anywhere."""
    following: dict[tuple[int, ...], set[int]] = {}
    for path in paths:
        for level in range(len(path)):
            following.setdefault(tuple(path[:level]), set()).add(path[level])

    class OrAnything(dict[tuple[int, ...], list[int]]):
        def __missing__(self, prefix: tuple[int, ...]) -> list[int]:
            return [0]

    return OrAnything({prefix: sorted(codes) for prefix, codes in following.items()})


def interleaved(calls: list[Callable[[], Any]], rounds: int, *, warm_up: bool = True) -> list[float]:
    """Median seconds of each call, taken in turns; ``warm_up`` calls each once before."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + warm_up):
        for call, times in zip(calls, seconds, strict=True):
            start_s = time.perf_counter()
            call()
            if turn >= warm_up:
                times.append(time.perf_counter() - start_s)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
