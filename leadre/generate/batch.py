"""Lists ahead of time: every request of a split answered in both views, in parts that survive a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from leadre import progress
from leadre.artifact import Artifact
from leadre.data.histories import Logs
from leadre.lm.decode import BeamSearcher
from leadre.lm.prior import InventoryPrior
from leadre.semid import codebook as codebooks
from leadre.tune import model as saved
from leadre.tune.answers import VIEWS, Ranked, answer
from leadre.tune.threads import ThreadBuilder, Window

WINDOWS_A_PART = 64
CASES = 6
SCHEMA = {"request": pl.Int32(), "view": pl.String(), "ads": pl.List(pl.Int32()), "scores": pl.List(pl.Float32())}


@dataclass(frozen=True)
class TunedSearcher:
    """A tuned model and all that it needs to answer requests of one log."""

    searcher: BeamSearcher
    threads: ThreadBuilder
    live: InventoryPrior


def load(
    tables: Artifact,
    codebook: Artifact,
    model: Artifact,
    *,
    training: bool,
    threads: int = 0,
    logs: Logs | None = None,
) -> TunedSearcher:
    """A tuned model that answers requests, ``training`` ones too, of ``logs`` if they are given.

    ``threads``: processor threads, 0 = all.
    """
    if threads:
        torch.set_num_threads(threads)
    ids = saved.tuned_ids(codebooks.load(codebook), model)
    loaded = saved.load(tables, ids, model, training=training, logs=logs)
    return TunedSearcher(BeamSearcher(loaded.backbone), loaded.threads, loaded.live)


class ResumableParts:
    """Finished parts of a run in a folder; parts of another ``identity`` are thrown away."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        mark = folder / "identity"
        if not (mark.exists() and mark.read_text(encoding="utf-8") == identity):
            self.remove()
            folder.mkdir(parents=True)
            mark.write_text(identity, encoding="utf-8")

    def path(self, part: int) -> Path:
        return self.folder / f"{part:05d}.parquet"

    def put(self, part: int, frame: pl.DataFrame) -> None:
        """Write a part, whole or not at all."""
        temporary = self.folder / ".part.tmp"
        frame.write_parquet(temporary)
        os.replace(temporary, self.path(part))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def generate(
    engine: TunedSearcher, requests: NDArray[np.int64], parts: ResumableParts, *, beam: int, top: int, seed: int
) -> pl.DataFrame:
    """The best ``top`` live ads of each request in both views: columns request, view, ads, scores."""
    windows = engine.threads.serving(requests)
    # neighbours by length share a batch without much padding
    windows.sort(key=lambda window: int(engine.threads.tokens_V[window.stop] - engine.threads.tokens_V[window.start]))
    shards = [windows[start : start + WINDOWS_A_PART] for start in range(0, len(windows), WINDOWS_A_PART)]
    with progress.track("generate: requests", len(requests)) as advance:
        for part, shard in enumerate(shards):
            if not parts.path(part).exists():
                parts.put(part, _answer(engine, shard, beam, top, seed))
            advance(sum(len(window.requests) for window in shard))
    frames = [pl.read_parquet(parts.path(part)) for part in range(len(shards))]
    return pl.concat([pl.DataFrame(schema=SCHEMA), *frames]).sort("request", "view")


def _answer(engine: TunedSearcher, windows: Sequence[Window], beam: int, top: int, seed: int) -> pl.DataFrame:
    logs = engine.threads.logs
    key_A = np.random.default_rng(seed).permutation(len(logs.ads))
    found = answer(engine.searcher, engine.threads, engine.live, windows, VIEWS, beam)
    rows = [(ranked.r, ranked.view, *ads_of(logs, ranked, key_A, top)) for ranked in found]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def ads_of(logs: Logs, ranked: Ranked, key_A: NDArray[np.int64], top: int) -> tuple[list[int], list[float]]:
    """Live ads of ranked objects. Ads of one object have one score; ``key_A``, a fixed random order, breaks the tie."""
    live = logs.inventory(ranked.r)
    place_O = {int(o): place for place, o in enumerate(ranked.objects)}
    places = np.array([place_O.get(int(o), -1) for o in logs.ad_object_A[live]], np.int64)
    mine = np.flatnonzero(places >= 0)
    order = mine[np.lexsort((key_A[live[mine]], places[mine]))][:top]
    return live[order].tolist(), ranked.log_p[places[order]].tolist()


def write_cases(engine: TunedSearcher, lists: pl.DataFrame, path: Path, *, seed: int) -> None:
    """Six seeded requests with prompt, generated ads and log-probabilities, one JSON object a line."""
    logs, prompter = engine.threads.logs, engine.threads.prompter
    shown = lists.filter(pl.col("view") == "all").sample(min(CASES, len(lists) // 2), seed=seed, shuffle=True)
    with path.open("w", encoding="utf-8") as file:
        for row in shown.iter_rows(named=True):
            (window,) = engine.threads.serving(np.array([row["request"]]))
            text = prompter.render(engine.threads.write(window).ids)
            titles = logs.ads["title"].gather(row["ads"]).to_list()
            ids = logs.ads["ad_id"].gather(row["ads"]).to_list()
            generated = [
                {"ad_id": ad_id, "title": title, "logprob": score}
                for ad_id, title, score in zip(ids, titles, row["scores"], strict=True)
            ]
            file.write(json.dumps({"request": row["request"], "prompt": text, "generated": generated}) + "\n")
