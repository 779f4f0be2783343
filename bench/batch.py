"""Lists for many users ahead of time against `transformers.generate`, one user at a time and in its best batch.

The crowded live set, model, type and threads of bench/generate.py, 20 beams, the best 10 ads of each user; prompts of
one length, which spares the rival its padding. Medians of interleaved rounds over the same users.

- ``batch_speedup``: seconds of a loop over users with `transformers.generate` over ours.
- ``batch_speedup_vs_best_batch``: the same against the fastest of its batch sizes, ``best_batch``.
- ``users_per_s``: ours, in batches of as many threads as generation takes.

    python bench/batch.py [--users 16] [--rounds 1]
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import generate

from leadre.lm.beam import BeamPolicy
from leadre.tune.answers import THREADS_AT_ONCE

BEAMS, TOP = 20, 10
BATCHES = (1, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("work"))
    args = parser.parse_args()
    bench = generate.Bench(generate.crowded(), args.work, args.rounds)
    users = [bench.words(generate.PROMPT) for _ in range(args.users)]
    rival = bench.rival()
    check(bench, rival, users[:2])

    def ours() -> None:
        for some in parts(users, THREADS_AT_ONCE):
            bench.searcher(bench.threads(some), BeamPolicy(BEAMS, TOP))

    def theirs(size: int) -> None:
        for some in parts(users, size):
            rival(some, BEAMS, TOP)

    sizes = [size for size in BATCHES if size <= len(users)]
    calls = [ours, *(partial(theirs, size) for size in sizes)]
    our_s, *their_s = generate.interleaved(calls, args.rounds)
    best_s = min(their_s)
    print(
        json.dumps(
            {
                "batch_speedup": round(their_s[0] / our_s, 2),
                "batch_speedup_vs_best_batch": round(best_s / our_s, 2),
                "best_batch": sizes[their_s.index(best_s)],
                "users_per_s": round(len(users) / our_s, 2),
            }
        )
    )


def parts(users: list[Any], size: int) -> list[list[Any]]:
    return [users[start : start + size] for start in range(0, len(users), size)]


def check(bench: generate.Bench, rival: Any, users: list[Any]) -> None:
    """Both must find the same ads, but for those whose last bits differ."""
    results = bench.searcher(bench.threads(users), BeamPolicy(BEAMS, TOP))
    codes = (rival(users, BEAMS, TOP)[:, generate.PROMPT :] - bench.layout.words).numpy()
    for place, (answer,) in enumerate(results):
        ours = set(map(tuple, bench.layout.rows(bench.codes_OL[answer.rows]).tolist()))
        theirs = set(map(tuple, codes[place * TOP : (place + 1) * TOP].tolist()))
        assert len(ours & theirs) >= TOP - 2, f"of {TOP} ads only {len(ours & theirs)} are the same"


if __name__ == "__main__":
    main()
