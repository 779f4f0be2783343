"""Generate ads for the requests of a split ahead of time, in both views; a killed run resumes at the next part.

The views are of the live ads: "all", and "new", those without the objects of the user's history.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from leadre import parquet, progress
from leadre.artifact import Artifact
from leadre.data.moment import LiveInventory, Moments
from leadre.data.tables import LISTS
from leadre.semid import codebook as codebooks
from leadre.tune import model as models
from leadre.tune.answers import VIEWS, Ranked, TunedSearcher
from leadre.tune.threads import Window

WINDOWS_PER_PART = 64
CASES = 6


def load(
    tables: Artifact,
    codebook: Artifact,
    model: Artifact,
    *,
    training: bool,
    threads: int = 0,
    moments: Moments | None = None,
) -> TunedSearcher:
    """A tuned model that answers ``moments``, by default the requests of the tables.

    ``training``: it answers training requests too. ``threads``: processor threads, 0 = all.
    """
    if threads:
        torch.set_num_threads(threads)
    ids = models.tuned_ids(codebooks.load(codebook), model)
    return models.load(tables, ids, model, training=training, moments=moments).searcher()


class ResumableParts:
    """Finished parts of a run in a folder; parts of a run with another ``identity`` are removed."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        file = folder / "identity"
        if not (file.exists() and file.read_text(encoding="utf-8") == identity):
            self.remove()
            folder.mkdir(parents=True)
            file.write_text(identity, encoding="utf-8")

    def path(self, part: int) -> Path:
        return self.folder / f"{part:05d}.parquet"

    def put(self, part: int, frame: pl.DataFrame) -> None:
        """Write a part atomically."""
        temporary = self.folder / ".part.tmp"
        parquet.write(frame, temporary)
        os.replace(temporary, self.path(part))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def generate(
    engine: TunedSearcher, requests: NDArray[np.int64], parts: ResumableParts, *, beam: int, top: int, seed: int
) -> pl.DataFrame:
    """The best ``top`` live ads of each request in both views: columns request, view, ads, scores."""
    windows = engine.threads.serving(requests)
    windows.sort(key=engine.threads.length)  # windows of similar length share a batch with little padding
    shards = [windows[start : start + WINDOWS_PER_PART] for start in range(0, len(windows), WINDOWS_PER_PART)]
    with progress.track("generate: requests", len(requests)) as advance:
        for part, shard in enumerate(shards):
            if not parts.path(part).exists():
                parts.put(part, _answer(engine, shard, beam, top, seed))
            advance(sum(len(window.requests) for window in shard))
    frames = [pl.read_parquet(parts.path(part)) for part in range(len(shards))]
    return pl.concat([pl.DataFrame(schema=LISTS), *frames]).sort("request", "view")


def _answer(engine: TunedSearcher, windows: Sequence[Window], beam: int, top: int, seed: int) -> pl.DataFrame:
    moments = engine.threads.moments
    key_A = np.random.default_rng(seed).permutation(len(moments.logs.ads))
    rows = [
        (ranked.r, ranked.view, *ads_of(moments[ranked.r].inventory, ranked, key_A, top))
        for ranked in engine.answer(windows, VIEWS, beam)
    ]
    return pl.DataFrame(rows, schema=LISTS, orient="row")


def ads_of(
    inventory: LiveInventory, ranked: Ranked, key_A: NDArray[np.int64], top: int
) -> tuple[list[int], list[float]]:
    """(live ads of the ranked objects, their scores), at most ``top``.

    Ads of one object have one score; ``key_A``, a fixed random order, breaks the tie.
    """
    live = inventory.ads
    rank_of = {int(o): rank for rank, o in enumerate(ranked.objects)}
    rank_I = np.array([rank_of.get(int(o), -1) for o in inventory.ad_object], np.int64)
    ranked_I = np.flatnonzero(rank_I >= 0)
    order = ranked_I[np.lexsort((key_A[live[ranked_I]], rank_I[ranked_I]))][:top]
    return live[order].tolist(), ranked.log_p[rank_I[order]].tolist()


def write_cases(engine: TunedSearcher, lists: pl.DataFrame, path: Path, *, seed: int) -> None:
    """Write `CASES` random requests with prompt, generated ads and log-probabilities, one JSON object per line."""
    logs = engine.threads.logs
    prompter = engine.threads.prompter
    sample = lists.filter(pl.col("view") == "all").sample(min(CASES, len(lists) // 2), seed=seed, shuffle=True)
    with path.open("w", encoding="utf-8") as file:
        for row in sample.iter_rows(named=True):
            (window,) = engine.threads.serving(np.array([row["request"]]))
            text = prompter.render(engine.threads.write(window).ids)
            titles = logs.ads["title"].gather(row["ads"]).to_list()
            ids = logs.ads["ad_id"].gather(row["ads"]).to_list()
            generated = [
                {"ad_id": ad_id, "title": title, "logprob": score}
                for ad_id, title, score in zip(ids, titles, row["scores"], strict=True)
            ]
            file.write(json.dumps({"request": row["request"], "prompt": text, "generated": generated}) + "\n")
