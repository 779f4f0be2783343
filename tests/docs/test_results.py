"""The figures of the result pages are those of the JSON files beside them.

A page marks a table with ``<!-- table: KIND FILE ARGUMENT... -->`` and ``<!-- end of table -->``. The test generates
the lines between the two from FILE and compares; ``python tests/docs/test_results.py`` writes them into the pages.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from leadre.evaluate import report
from tests.docs import bag_tables, coarse_tables, rank_tables
from tests.docs.tables import MARKS, Cell, figure, table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = [ROOT / "README.md", *sorted(RESULTS.glob("*.md"))]
TABLE = re.compile(r"(?<=<!-- table: )(.+?)( -->\n)(.*?)(?=<!-- end of table -->)", re.S)
FIGURE = re.compile(r"(?<![\w.])(\.\d{3,4})(?!\d)")  # .373: a metric, in prose or in a table
LABELS = {"recall": "R", "ndcg": "nDCG", "gmv": "GMV", "value": "mean price, top ", "coverage": "coverage"}
PARTS = {
    "cold": "hidden lines",
    "few": "lines with few conversions",
    "cold-new": "hidden lines, no repeats",
    "few-new": "lines with few conversions, no repeats",
}
COMPARED = ("recall@10", "ndcg@10", "gmv@10")
METHODS = {
    "leadre": "**LEADRE**",
    "dpo": "`dpo`: trained by value",
    "sft+price": "`sft+price`: its lists re-ranked by price",
    "leadre+counts": "`leadre+counts`: fused with own frequency",
    "rate_prior": "`rate_prior`: LEADRE with response rates as prior",
    "ranker": "`ranker`: the ranking stage",
    "prior_alone": "`prior_alone`: nothing learnt beyond the prior",
    "random_body": "`random_body`: no pretrained weights",
    "shuffled_ids": "`shuffled_ids`: IDs without meaning",
    "ids_only": "`ids_only`: prompts without words",
}


def difference(cell: Cell) -> str:
    """The paired difference of a cell with its interval and mark; empty for a reference row."""
    if "diff" not in cell:
        return ""
    diff = cell["diff"]
    sign = "+" if diff["mean"] > 0 else ""
    bounds = f"{figure(diff['lo'], 4)} to {figure(diff['hi'], 4)}"
    return f"{sign}{figure(diff['mean'], 4)} ({bounds}) {MARKS[report.verdict(cell)]}"


def heading(column: str) -> str:
    """`all/recall@10` -> `all: R@10`."""
    view, _, metric = column.partition("/")
    name, _, k = metric.partition("@")
    return f"{PARTS.get(view, view)}: {LABELS[name]}{'' if name == 'value' else '@'}{k}"


def title(method: str) -> str:
    """The row title of a method: that of the report, in lower case unless it is a name."""
    name = report.title(method)
    return METHODS.get(method) or (name if name[:2].isupper() or method == "sasrec" else name[0].lower() + name[1:])


def ordered(rows: Mapping[str, Any]) -> list[str]:
    """The methods of a view or slice, the highest recall first."""
    return sorted(rows, key=lambda method: -rows[method]["recall@10"]["mean"])


def means(metrics: Any) -> str:
    """Means of every method in both views, with a mark that compares them with LEADRE."""
    views = metrics["views"]
    cells = [(view, metric) for view in views for metric in COMPARED]
    rows = [
        [title(method), *(f"{figure(c['mean'])} {MARKS[report.verdict(c)]}" for c in row)]
        for method in ordered(views["all"])
        if (row := [views[view][method][metric] for view, metric in cells])
    ]
    return table(["method", *(heading(f"{view}/{metric}") for view, metric in cells)], rows)


def differences(metrics: Any) -> str:
    """Paired differences to LEADRE, with intervals."""
    views = metrics["views"]
    cells = [(view, metric) for view in views for metric in ("recall@10", "gmv@10")]
    rows = [
        [title(method), *(difference(views[view][method][metric]) for view, metric in cells)]
        for method in ordered(views["all"])
        if method != report.OURS
    ]
    return table(["method, less LEADRE", *(heading(f"{view}/{metric}") for view, metric in cells)], rows)


def against(retrieval: Any, test_set: str, view: str) -> str:
    """One view of a test set: recall with its interval, the paired difference to LEADRE, and the other metrics."""
    if test_set not in retrieval:
        return "\nNot read yet.\n\n"
    rows = []
    for method, row in retrieval[test_set][view].items():
        recall = row["recall@10"]
        seeds = "" if row["seeds"] == 1 else f" ({row['seeds']} seeds)"
        others = [_mean_and_mark(row.get(metric)) for metric in COMPARED[1:]]
        interval = f"{figure(recall['mean'])} ({figure(recall['lo'])} to {figure(recall['hi'])})"
        rows.append([title(method) + seeds, interval, difference(recall), *others])
    return table(["method", "R@10", "R@10, less LEADRE", "nDCG@10", "GMV@10"], rows)


def headline(retrieval: Any, *methods: str) -> str:
    """Recall of a few methods on every test set, with a mark that compares them with LEADRE."""
    sources = [source for source, about in retrieval["about"].items() if about["split"] == "test"]
    test_sets = dict.fromkeys(source.partition("/")[0] for source in sources)
    views = [(test_set, view) for test_set in test_sets for view in retrieval[test_set]]
    first = retrieval[views[0][0]][views[0][1]]
    rows = [
        [
            title(method),
            *(_mean_and_mark(retrieval[test_set][view].get(method, {}).get("recall@10")) for test_set, view in views),
        ]
        for method in first  # the highest recall first
        if method in methods
    ]
    return table(["R@10", *(test_set if view == "test" else f"{test_set}: {view}" for test_set, view in views)], rows)


def _mean_and_mark(cell: Cell | None) -> str:
    return f"{figure(cell['mean'])} {MARKS[report.verdict(cell)]}" if cell else ""


def readings(retrieval: Any, *test_sets: str) -> str:
    """Requests and users of each test set, and how often its rows have been read."""
    rows = []
    by_set = {source.partition("/")[0]: about for source, about in retrieval["about"].items()}
    for test_set, about in ((name, by_set[name]) for name in test_sets if name in by_set):
        counts = sorted(set(about["readings"].values()))
        for view, requests in about["requests"].items():
            if requests is not None:
                read = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
                rows.append([f"{test_set}: {view}", f"{requests:,}", f"{about['users'][view]:,}", read])
    return table(["test set", "requests", "users", "readings of a row"], rows)


def by_view(retrieval: Any, name: str, metric: str, heading: str) -> str:
    """A metric of every method in each view of a set, with a mark that compares it with LEADRE."""
    views = retrieval.get(name, {})
    if not views:
        return "\nNot measured yet.\n\n"
    methods = ordered(views[next(iter(views))])
    rows = [[title(method), *(_mean_and_mark(views[view][method][metric]) for view in views)] for method in methods]
    return table([heading, *views], rows)


def steps(ablation: Any, *columns: str) -> str:
    """The cumulative rows: the mean over seeds, and the paired difference to the row before."""
    rows = [
        [row["title"], *(f"{figure(cell['mean'])} {difference(cell)}" for cell in cells)]
        for row in ablation["rows"]
        if not row["left_out"] and (cells := [row["columns"][column] for column in columns])
    ]
    return table(["row", *map(heading, columns)], rows)


def without(ablation: Any, reference: str, *columns: str) -> str:
    """The rows without one part: the paired difference to the row that has all."""
    rows = [
        [row["title"], *(difference(row["columns"][column]) for column in columns)]
        for row in ablation["rows"]
        if row["left_out"] and row["against"] == reference
    ]
    return table(["left out", *map(heading, columns)], rows)


def pair(ablation: Any, first: str, second: str) -> str:
    """Two rows of an ablation, column by column."""
    by_name = {row["name"]: row for row in ablation["rows"]}
    rows = [
        [heading(column), figure(cell["mean"], 4), figure(other["mean"], 4), difference(other)]
        for column, cell in by_name[first]["columns"].items()
        if (other := by_name[second]["columns"][column])
    ]
    return table(["measure", by_name[first]["title"], by_name[second]["title"], "difference"], rows)


def channels(measured: Any, *views: str) -> str:
    """Channels on all requests of a split, averaged over seeds, the highest recall first (`bench/channels.py`)."""
    cells = [(view, metric) for view in views for metric in COMPARED[:2]]
    rows = [
        [title(name), str(len(seeds) - 1), *(figure(seeds["mean"][view][metric]["mean"], 4) for view, metric in cells)]
        for name, seeds in sorted(
            measured["rows"].items(), key=lambda row: -row[1]["mean"][views[0]]["recall@10"]["mean"]
        )
    ]
    return table(["method", "seeds", *(heading(f"{view}/{metric}") for view, metric in cells)], rows)


TABLES = (
    means,
    differences,
    against,
    headline,
    readings,
    by_view,
    steps,
    without,
    pair,
    channels,
    *rank_tables.TABLES,
    *coarse_tables.TABLES,
    *bag_tables.TABLES,
)
KINDS: dict[str, Callable[..., str]] = {function.__name__: function for function in TABLES}


def with_tables(text: str, folder: Path) -> str:
    """The page with every marked table generated from its file, which is looked up from `folder`."""

    def replace(match: re.Match[str]) -> str:
        kind, file, *arguments = shlex.split(match.group(1))
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        return match.group(1) + match.group(2) + KINDS[kind](content, *arguments)

    return TABLE.sub(replace, text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_json(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text, page.parent), f"out of date; run: python {Path(__file__).relative_to(ROOT)}"


def figures(text: str) -> set[str]:
    """Metrics in a text, without their sign."""
    return {match.group(1) for match in FIGURE.finditer(text)}


def stray_figures(text: str, log: str) -> set[str]:
    """Figures of the prose that no table of the page has; a paragraph that links LOG.md may also cite the log."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    known = figures("\n".join(rows))
    stray = set()
    for paragraph in re.split(r"\n(?=\n|- )", "\n".join(prose)):
        stray |= figures(paragraph) - known - (figures(log) if "LOG.md" in paragraph else set())
    return stray


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_figures_in_prose_are_in_a_table_of_the_page(page: Path) -> None:
    log = (ROOT / "LOG.md").read_text(encoding="utf-8")
    assert not stray_figures(page.read_text(encoding="utf-8"), log)


@pytest.mark.parametrize("run", ["demo", "journey", "ablation", "cold"])
def test_figures_in_the_head_of_a_config_are_on_its_page(run: str) -> None:
    head, _, _ = (ROOT / "configs" / f"{run}.toml").read_text(encoding="utf-8").partition("\nrun = ")
    page = RESULTS / ("index.md" if run == "demo" else f"{run}.md")
    assert figures(head)
    assert figures(head) <= figures(page.read_text(encoding="utf-8"))


def test_every_result_file_has_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES[1:])
    files = [path for path in RESULTS.rglob("*.*") if path.suffix in (".json", ".png")]
    assert files
    assert not [path.name for path in files if path.relative_to(RESULTS).as_posix() not in text]


PAGE = """# A page

Recall is .900, {prose}.

<!-- table: pair rows.json a b -->
<!-- end of table -->

The log has .777: [LOG.md](LOG.md).
"""


def test_wrong_figures_are_reported(tmp_path: Path) -> None:
    cell = {"mean": 0.9, "by_seed": {"0": 0.9}}
    rows = [{"name": name, "title": name, "columns": {"all/recall@10": cell}} for name in "ab"]
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    page = with_tables(PAGE.replace(".900", ".9000"), tmp_path)
    assert "| all: R@10 | .9000 | .9000 |" in page
    assert with_tables(page, tmp_path) == page
    assert with_tables(page.replace("| .9000 |", "| .8000 |"), tmp_path) == page
    assert stray_figures(page.format(prose="not .8999"), "in the log: .777") == {".8999"}
    assert stray_figures(page.format(prose="indeed"), "") == {".777"}


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_tables(path.read_text(encoding="utf-8"), path.parent), encoding="utf-8")
