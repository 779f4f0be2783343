"""A run folder with a small synthetic market, and random lists in place of the model's."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from leadre import artifact, progress
from leadre.data import histories
from leadre.data import run as data_run
from leadre.evaluate.retrieval import measure as retrieval

QUICK = ("popularity", "own_frequency")


def write_lists(
    root: Path,
    logs,
    *,
    step="generate",
    seed: int = 0,
    swap=None,
    data=None,
    split=histories.TEST,
    model=None,
    config=None,
) -> Path:
    """Write random lists for every request of a split and both views; `swap(request, view, ads)` replaces a list."""
    data = data or artifact.read(root / "data", artifact.TABLES)
    parents = [data] if model is None else [data, model]
    rng = np.random.default_rng(seed)
    rows = []
    for r in logs.requests_of(split).tolist():
        for view in retrieval.VIEWS:
            ads = rng.permutation(logs.inventory(r)[retrieval.eligible(logs, r, view)])[:25]
            ads = ads if swap is None else swap(r, view, ads)
            if ads is not None:
                rows.append({"request": r, "view": view, "ads": ads.tolist(), "scores": [0.0] * len(ads)})
    schema = {"request": pl.Int32, "view": pl.String, "ads": pl.List(pl.Int32), "scores": pl.List(pl.Float32)}
    with artifact.create(root / step, kind=artifact.LISTS, config=config or {}, seed=seed, parents=parents) as folder:
        pl.DataFrame(rows, schema=schema).write_parquet(folder / "lists.parquet")
        generated = [{"ad_id": "x", "title": "<script>alert(1)</script>", "logprob": -1.5}]
        case = {"request": rows[0]["request"], "prompt": "Who? <b>& what</b>", "generated": generated}
        (folder / "cases.jsonl").write_text(json.dumps(case) + "\n", encoding="utf-8")
    return root / step


@pytest.fixture
def said(monkeypatch):
    """The progress lines of the stage."""
    lines = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """(work folder with work/tiny/data, its logs)."""
    work = tmp_path_factory.mktemp("work")
    data_run.run(
        data_run.Config(run="tiny", work=work, source="world", world_users=60, world_ads=50, world_contents=10)
    )
    return work, histories.load(artifact.read(work / "tiny" / "data", artifact.TABLES))


@pytest.fixture
def run_folder(market, tmp_path):
    """A fresh work folder that shares the market's data artifact."""
    work, logs = market
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "data").symlink_to(work / "tiny" / "data")
    return tmp_path, logs


def config(cls, work: Path, **changes):
    return dataclasses.replace(cls(run="tiny", work=work, channels=QUICK, resamples=100, threads=1), **changes)
