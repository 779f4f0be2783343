"""docs/results/retrieval.json is gathered from the metrics of finished runs, never typed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("gather", ROOT / "runs" / "gather.py")
assert _spec is not None and _spec.loader is not None
gather = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gather)


def cell(mean: float, gap: float | None) -> dict[str, Any]:
    interval = {"mean": mean, "lo": mean - 0.1, "hi": mean + 0.1}
    return interval if gap is None else {**interval, "diff": {"mean": gap, "lo": gap - 0.05, "hi": gap + 0.05}}


def metrics(rows: dict[str, tuple[float, float | None]], requests: int = 7) -> dict[str, Any]:
    view = {row: {name: cell(*figures) for name in (*gather.METRICS, "recall@5")} for row, figures in rows.items()}
    counts = {"all": requests, "new": requests}
    return {
        "views": {"all": view, "new": view},
        "split": "test",
        "requests": counts,
        "users": counts,
        "readings": dict.fromkeys(rows, 1),
    }


def write(folder: Path, name: str, content: dict[str, Any]) -> str:
    (folder / name).write_text(json.dumps(content))
    return name


def test_rows_have_the_documented_shape_and_are_ordered_by_recall(tmp_path: Path) -> None:
    file = write(tmp_path, "a.json", metrics({"leadre": (0.3, None), "dpo": (0.2, -0.1), "als": (0.4, 0.1)}))
    content = gather.gather({"journey": [file]}, tmp_path)
    assert set(content) == {"about", "journey"} and set(content["journey"]) == {"all", "new"}
    rows = content["journey"]["all"]
    assert [(row, rows[row]["rival"]) for row in rows] == [("als", True), ("leadre", False), ("dpo", False)]
    assert set(rows["als"]) == {"rival", "seeds", *gather.METRICS}
    assert rows["als"]["recall@10"] == cell(0.4, 0.1)
    assert "diff" not in rows["leadre"]["recall@10"]
    assert content["about"]["journey"]["requests"] == {"all": 7, "new": 7}


def test_a_set_of_several_runs_keeps_all_and_is_gathered_again(tmp_path: Path) -> None:
    files = [write(tmp_path, f"{n}.json", metrics({"leadre": (0.1 * n, None)}, requests=n)) for n in (1, 2)]
    sources = {"sparse/1": [files[0]], "sparse/2": [files[1]]}
    content = gather.gather(sources, tmp_path)
    assert [content["sparse"][view]["leadre"]["recall@10"]["mean"] for view in ("1", "2")] == [0.1, 0.2]
    assert [content["about"][source]["requests"] for source in sources] == [{"1": 1}, {"2": 2}]
    assert gather.sources_of(content) == sources


def test_a_slice_is_taken_under_another_name(tmp_path: Path) -> None:
    content = metrics({"leadre": (0.3, None)})
    content["slices"] = {"cold-new": {"leadre": {"recall@10": cell(0.1, None)}}}
    content["requests"]["cold-new"] = content["users"]["cold-new"] = 3
    file = write(tmp_path, "0.json", content)
    gathered = gather.gather({"new_ads/0:cold-new": [file], "plain": [file]}, tmp_path)
    assert gathered["new_ads"]["0"]["leadre"]["recall@10"]["mean"] == 0.1
    assert gathered["about"]["new_ads/0:cold-new"]["requests"] == {"0": 3}
    assert set(gathered["plain"]) == {"all", "new"}
    assert gather.gather(gather.sources_of(gathered), tmp_path) == gathered


def test_seeds_are_averaged(tmp_path: Path) -> None:
    first = write(tmp_path, "0.json", metrics({"leadre": (0.3, None), "sasrec": (0.4, 0.1)}))
    second = write(tmp_path, "1.json", metrics({"leadre": (0.3, None), "sasrec": (0.6, 0.3), "als": (0.1, -0.2)}))
    content = gather.gather({"beauty/test": [first, second]}, tmp_path)
    assert list(content["beauty"]) == ["test"]
    rows = content["beauty"]["test"]
    assert (rows["sasrec"]["seeds"], rows["als"]["seeds"]) == (2, 1)
    assert rows["sasrec"]["recall@10"]["mean"] == pytest.approx(0.5)
    assert rows["sasrec"]["recall@10"]["diff"]["hi"] == pytest.approx(0.25)


def test_rivals_by_seed_have_no_difference_and_no_money(tmp_path: Path) -> None:
    seeds = {
        seed: {"all": {name: cell(mean, None) for name in ("recall@10", "ndcg@10")}}
        for seed, mean in (("0", 0.2), ("1", 0.4))
    }
    rows = {"sasrec": {**seeds, "mean": {"all": {"recall@10": {"mean": 0.9}}}}, "als": {"0": seeds["0"]}}
    file = write(tmp_path, "channels.json", {"split": "test", "rows": rows})
    table = gather.gather({"beauty/test": [file]}, tmp_path)["beauty"]["test"]
    assert (table["sasrec"]["seeds"], table["als"]["seeds"]) == (2, 1)
    assert table["sasrec"]["recall@10"]["mean"] == pytest.approx(0.3)
    assert set(table["sasrec"]) == {"rival", "seeds", "recall@10", "ndcg@10"} and table["sasrec"]["rival"]


def test_seeds_of_different_requests_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path, f"{n}.json", metrics({"leadre": (0.3, None)}, requests=n)) for n in (7, 8)]
    with pytest.raises(AssertionError, match="seeds of different requests"):
        gather.gather({"beauty/test": files}, tmp_path)


def test_retrieval_json_is_gathered_from_its_files() -> None:
    content = json.loads(gather.OUTPUT.read_text(encoding="utf-8"))
    assert content == gather.gather(gather.sources_of(content), ROOT), "out of date; run: python runs/gather.py"
