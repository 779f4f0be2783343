"""Time of a beam search by part: SmolLM2-135M at full depth, prompts of 128, beams open to the last level.

Writes generate_profile.png beside this file and ends with the milliseconds of each part as JSON. Each part's own time
is measured by the clock around the functions that do it, so what a part calls of another part counts there. The
prefill is one part, with everything in it; on a GPU the clock would see the launches alone.

    python bench/profile_generate.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generate
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from leadre.lm import cache, runner
from leadre.lm.backbone import Backbone
from leadre.semid.trie import Trie

PARTS = {
    "prefill": "#4c78a8",
    "projections": "#f58518",
    "attention": "#e45756",
    "head and mask": "#72b7b2",
    "trie on the host": "#54a24b",
    "top-k": "#b279a2",
    "rest": "#bab0ac",
}
CASES = {"beam 20": (1, 20), "beam 50": (1, 50), "batch of 16, beam 50": (16, 50)}


class Clock:
    """Own time of each part; the clock of a part pauses while it calls another."""

    def __init__(self) -> None:
        self.ms: Counter[str] = Counter()
        self._open = ["rest"]
        self._since_s = time.perf_counter()

    def switch(self) -> None:
        now_s = time.perf_counter()
        self.ms["prefill" if "prefill" in self._open else self._open[-1]] += (now_s - self._since_s) * 1000
        self._since_s = now_s

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count the time in ``owner.name`` as ``part``, from now on."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **named: Any) -> Any:
            self.switch()
            self._open.append(part)
            try:
                return inner(*args, **named)
            finally:
                self.switch()
                self._open.pop()

        setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("work"))
    args = parser.parse_args()
    bench = generate.Bench(generate.crowded(), args.work, rounds=1)
    clock = Clock()
    results = {}
    for owner, names, part in (
        (cache.PromptCache, ("prefill",), "prefill"),
        (runner._FusedLinear, ("__call__",), "projections"),
        (cache.BeamCache, ("_attend",), "attention"),
        (Backbone, ("log_p",), "head and mask"),
        (Trie, ("log_prior", "step", "rows_below", "rows"), "trie on the host"),
        (torch.Tensor, ("topk",), "top-k"),
    ):
        for name in names:
            clock.watch(owner, name, part)
    for case, (count, width) in CASES.items():
        rounds = []
        for _ in range(args.rounds + 1):
            clock.switch()
            clock.ms.clear()
            bench.ours(count, width)
            clock.switch()
            rounds.append({part: round(clock.ms[part], 2) for part in PARTS})
        results[case] = min(rounds, key=lambda parts: sum(parts.values()))  # the one that was disturbed least
    plot(results, Path(__file__).with_name("generate_profile.png"))
    print(json.dumps(results))


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """One bar a case: shares of its time, with the milliseconds of the whole call beside its name."""
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    for y, parts in enumerate(reversed(results.values())):
        left = 0.0
        whole = sum(parts.values())
        for part, ms in parts.items():
            share = 100 * ms / whole
            axes.barh(y, share, left=left, color=PARTS[part], label=part if y == 0 else None, height=0.6)
            if share >= 3:
                axes.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center", color="white", fontsize=9)
            left += share
    names = [f"{case}\n{sum(parts.values()):.0f} ms" for case, parts in reversed(results.items())]
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the call, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(PARTS), frameon=False, fontsize=9, columnspacing=1.2)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
