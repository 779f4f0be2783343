"""Constrained beam search against `transformers.generate` with `prefix_allowed_tokens_fn`, side by side.

The same SmolLM2-135M at full depth, prompts, live ads, beams and type (bfloat16 where the processor has it); medians of
interleaved rounds. Two live sets of about 10,000 ads on four levels of 256 codes: *crowded* (ten codes a level are in
use, so every beam stays open to the last level), which the plain names mean, and *spread* (random paths; most beams are
finished after two levels and cost us nothing more).

- ``of_plain_forward``: one pass of the Hugging Face body over the prompt and 50 beams of three steps, divided by our
  whole call.
- ``prefix_speedup``: a call with 80 % of a prompt of 1,024 known against the same call without a cache, 20 beams.
- ``constraint_share``: what the trie costs in a step of 50 beams over the whole step. It and the other figures of tries
  come from bench/trie.py, which explains them.
- ``invalid_ids``: how many of ``generated_ids`` were not live, seen from the codes that the beams wrote; random live
  sets, a small random model.

    python bench/generate.py [--rounds 3] [--ids 1000000]
"""

from __future__ import annotations

import argparse
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
import trie as tries

from leadre.lm import backbone as backbones
from leadre.lm import pretrained
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearch, BeamSearcher
from leadre.lm.export import causal_lm
from leadre.lm.layout import Layout
from leadre.lm.prefix import PrefixCache
from leadre.semid.trie import build

Codes = np.ndarray[Any, Any]
SIZES = (256, 256, 256, 256)
ADS = 10_000
PROMPT = 128
BATCH = 16
LONG, SHARED = 1024, 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=Path("work"))
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for name, codes in (("", crowded()), ("_spread", spread())):
        bench = Bench(codes, args.work, args.rounds)
        results |= {f"{key}{name}": value for key, value in bench.against_transformers(batch=not name).items()}
        if not name:
            results |= bench.plain_forward() | bench.prefix() | bench.step()
    print(json.dumps(results | constraints(results["step_ms_beam50"]) | validity(args.ids)))


def crowded() -> Codes:
    """10,000 ads on ten codes a level."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(10)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    return np.stack([rng.permutation(256)[grid[:, level]] for level in range(4)], axis=1)


def spread() -> Codes:
    """About 10,000 ads with random codes."""
    return np.unique(np.random.default_rng(0).integers(0, 256, (ADS, 4)), axis=0)


class Bench:
    """Our searcher and its rival over one live set."""

    def __init__(self, codes_OL: Codes, work: Path, rounds: int) -> None:
        self.codes_OL = codes_OL
        self.rounds = rounds
        self.layout = Layout(len(pretrained.tokenizer(source := pretrained.folder_of("smollm2", work))), SIZES)
        self.backbone = backbones.create(source, self.layout, codes_OL, layers=0, pointer=False)
        torch.nn.init.normal_(self.backbone.codes_SD, std=float(self.backbone.words_VD.float().std()))
        self.searcher = BeamSearcher(self.backbone.eval())
        self.trie = build(codes_OL, SIZES)
        self.objects = np.arange(len(codes_OL))
        self.rng = np.random.default_rng(1)
        self.prompts = [self.words(PROMPT) for _ in range(BATCH)]

    def words(self, count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return self.rng.integers(0, self.layout.words, count).astype(np.int32)

    def threads(self, prompts: list[Any]) -> list[Any]:
        return [(ids, [BeamRequest(len(ids) - 1, self.trie, self.objects)]) for ids in prompts]

    def ours(self, count: int, width: int) -> Any:
        return self.searcher(self.threads(self.prompts[:count]), BeamPolicy(width))

    def rival(self) -> Callable[[list[Any], int, int], Any]:
        """`transformers.generate` with our weights: (prompts, beams, results wanted) -> written codes."""
        reference = causal_lm(self.backbone).to(self.searcher.runner.dtype)
        allowed = children((self.layout.words + self.layout.rows(self.codes_OL)).tolist())

        def generate(prompts: list[Any], width: int, top: int) -> Any:
            with torch.inference_mode():
                return reference.generate(
                    torch.from_numpy(np.stack(prompts)).long(),
                    attention_mask=torch.ones(len(prompts), PROMPT, dtype=torch.long),
                    prefix_allowed_tokens_fn=lambda _, ids: allowed[tuple(ids[PROMPT:].tolist())],
                    num_beams=width,
                    num_return_sequences=top,
                    max_new_tokens=len(SIZES),
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    length_penalty=0.0,
                    renormalize_logits=True,
                )

        return generate

    def against_transformers(self, *, batch: bool) -> dict[str, float]:
        """Ratios of medians, and our own seconds."""
        rival = self.rival()

        def theirs(count: int, width: int) -> Any:
            return rival(self.prompts[:count], width, width)

        result = {}
        for width in (50, 20):
            our_s, their_s = interleaved([partial(self.ours, 1, width), partial(theirs, 1, width)], self.rounds)
            result |= {f"speedup_beam{width}": round(their_s / our_s, 2), f"ours_s_beam{width}": round(our_s, 4)}
        if batch:
            calls = [lambda: self.ours(BATCH, 50), lambda: theirs(BATCH, 50)]
            our_s, their_s = interleaved(calls, 1, warm_up=False)
            result["speedup_batch16"] = round(their_s / our_s, 2)
        return result

    def plain_forward(self) -> dict[str, float]:
        """One pass of the Hugging Face body over as many positions, in the time of our whole call."""
        rows = torch.zeros(1, PROMPT + 50 * (len(SIZES) - 1), self.backbone.words_VD.shape[1])
        rows = rows.to(self.searcher.runner.dtype)
        body = causal_lm(self.backbone).to(self.searcher.runner.dtype).model

        def forward() -> None:
            with torch.inference_mode():
                body(inputs_embeds=rows)

        plain_s, our_s = interleaved([forward, lambda: self.ours(1, 50)], 2 * self.rounds + 1)
        return {"of_plain_forward": round(plain_s / our_s, 2)}

    def prefix(self) -> dict[str, float]:
        """Prompts that share their beginning, with its keys and values known and without a cache."""
        warm = BeamSearcher(self.backbone, self.searcher.runner, PrefixCache(capacity_mb=512))
        start = self.words(int(SHARED * LONG))
        fresh = [self.threads([np.append(start, self.words(LONG - len(start)))]) for _ in range(2 * self.rounds + 3)]
        turns = {searcher: iter(fresh) for searcher in (warm, self.searcher)}  # no prompt is seen twice
        calls = [lambda s=searcher: s(next(turns[s]), BeamPolicy(20)) for searcher in turns]
        warm_s, cold_s = interleaved(calls, 2 * self.rounds + 1)
        return {"prefix_speedup": round(cold_s / warm_s, 2), "prefix_s": round(warm_s, 4)}

    def step(self) -> dict[str, float]:
        """Milliseconds of a level with 50 open beams."""
        times = []
        for _ in range(4):
            search = BeamSearch(self.searcher, self.threads(self.prompts[:1]), BeamPolicy(50))
            search.prefill()
            while search.open_QW.any():
                is_full = search.open_QW.sum() == 50
                start_s = time.perf_counter()
                search.step()
                times += [time.perf_counter() - start_s] * bool(is_full)
        return {"step_ms_beam50": round(1000 * statistics.median(times), 2)}


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


def constraints(step_ms: float) -> dict[str, float]:
    """Costs of catalogues of one and ten million ads: to build, to restrict, and as a share of ``step_ms``."""
    small = tries.measure(1_000_000)
    large = tries.measure(10_000_000)
    return {
        "constraint_share_1m": round(small["constraint_ms_step"] / step_ms, 5),
        "constraint_share_10m": round(large["constraint_ms_step"] / step_ms, 5),
        "trie_seconds_10m": round(large["trie_seconds"], 2),
        "trie_bytes_per_ad": round(large["trie_bytes_per_ad"], 1),
        "mask_ms_100k": round(large["mask_ms_100k"], 2),
    }


def validity(count: int) -> dict[str, int]:
    """Generate ``count`` IDs from many live sets and count those that are not live, without the trie."""
    rng = np.random.default_rng(2)
    layout = Layout(1000, (32, 32, 32))
    codes_OL = np.unique(rng.integers(0, 32, (ADS, 3)), axis=0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    body = transformers.LlamaModel(transformers.LlamaConfig(vocab_size=8, num_key_value_heads=2, **shape))
    body.set_input_embeddings(torch.nn.Identity())
    backbone = backbones.Backbone(body, torch.randn(1000, 32).bfloat16(), layout, codes_OL, pointer=True).eval()
    torch.nn.init.normal_(backbone.codes_SD, std=3.0)
    searcher = BeamSearcher(backbone)
    generated = 0
    invalid = 0
    while generated < count:
        threads = []
        for _ in range(32):
            live = np.sort(rng.choice(len(codes_OL), int(10 ** rng.uniform(0, 3.5)), replace=False))
            ids = rng.integers(0, 1000 + layout.codes + len(codes_OL), int(rng.integers(1, 24))).astype(np.int32)
            threads.append((ids, [BeamRequest(len(ids) - 1, build(codes_OL[live], layout.sizes), live)] * 2))
        for live_codes, rows, written in written_codes(searcher, threads, codes_OL, width=50):
            depth = written.shape[1]
            paths = {tuple(path) for path in live_codes.tolist()}
            begun = {path[:depth] for path in paths}
            results = [tuple(path) for path in live_codes[rows].tolist()]
            dead = [start for start in map(tuple, written.tolist()) if start not in begun]
            twice = len(results) - len(set(results))
            lost = len(set(map(tuple, written.tolist())) ^ {path[:depth] for path in results})
            generated = generated + len(rows)
            invalid = invalid + max(len(dead), twice, lost)
    return {"generated_ids": generated, "invalid_ids": invalid}


def written_codes(searcher: BeamSearcher, threads: list[Any], codes_OL: Codes, width: int) -> Any:
    """(live codes [O, L], result rows [K], codes written by their beams [K, levels that were run]) of each request."""
    search = BeamSearch(searcher, threads, BeamPolicy(width))
    search.prefill()
    paths_QWL = None
    while True:
        last = search.code_QW[..., None]
        if paths_QWL is None:
            paths_QWL = last
        else:
            before = np.take_along_axis(paths_QWL, search.beam_QW[..., None], axis=1)
            paths_QWL = np.concatenate([before, last], axis=2)
        if not search.open_QW.any():
            break
        search.step()
    alive_QW = np.isfinite(search.score_QW.numpy())
    for q, (ask, answer) in enumerate(zip(search.requests, search.results(range(len(search.requests))), strict=True)):
        yield codes_OL[ask.objects], answer.rows, paths_QWL[q, alive_QW[q]]


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
