"""Mutated folders: every one is read or refused by an InputError, and no row is lost without a word."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from leadre.data.tables import ROW
from leadre.errors import InputError
from tests.data.conftest import Rows, market, read_folder, write

CELLS = (
    None,
    "",
    " ",
    "0",
    "-1",
    "1e400",
    "NaN",
    "\x00",
    '"',
    "2026-13-45",
    "99999999999999999999",
    "ad",
    "é\u202e",
    ROW,
)
FORMS = ("csv", "jsonl", "parquet")


def mutate_cells(rng: random.Random, rows: Rows) -> Rows:
    column = rng.choice(list(rows[0]))
    for n in rng.sample(range(len(rows)), max(1, len(rows) // rng.choice((2, 50)))):
        rows[n] = rows[n] | {column: rng.choice(CELLS)}
    return rows


def drop_column(rng: random.Random, rows: Rows) -> Rows:
    column = rng.choice(list(rows[0])) if len(rows[0]) > 1 else None
    return [{key: value for key, value in row.items() if key != column} for row in rows]


def rename_column(rng: random.Random, rows: Rows) -> Rows:
    column = rng.choice(list(rows[0]))
    name = rng.choice((column.upper(), f" {column}", column[:-1], "", ROW, "value", "price"))
    return [{(name if key == column else key): value for key, value in row.items()} for row in rows]


def repeat_rows(rng: random.Random, rows: Rows) -> Rows:
    return rows + rng.sample(rows, 2)


def shuffle(rng: random.Random, rows: Rows) -> Rows:
    return rng.sample(rows, len(rows))


def change_type(rng: random.Random, rows: Rows) -> Rows:
    """One column in another type, from some row on, so that parts of a table differ."""
    column = rng.choice(list(rows[0]))
    convert = rng.choice((str, lambda value: [value], lambda value: float(len(str(value))), lambda value: bool(value)))
    start = rng.choice((0, len(rows) // 3))
    return [row | {column: convert(row.get(column))} if n >= start else row for n, row in enumerate(rows)]


MUTATIONS: tuple[Callable[[random.Random, Rows], Rows], ...] = (
    *(mutate_cells, drop_column, rename_column, repeat_rows, shuffle, change_type),
)


def as_text(rows: Rows) -> Rows:
    """Values as one type a column, as a Parquet file needs."""
    types: dict[str, set[type]] = {}
    for row in rows:
        for key, value in row.items():
            types.setdefault(key, set()).update({type(value)} - {type(None)})
    texts = {key for key, kinds in types.items() if len(kinds) > 1 or str in kinds}
    return [{key: str(v) if key in texts and v is not None else v for key, v in row.items()} for row in rows]


def mutated(rng: random.Random, folder: Path) -> tuple[dict[str, int], set[str]]:
    """Write a market with some mutations; returns the rows written by table, and the tables with damaged bytes."""
    damaged = set()
    tables = market()
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(tables))
        tables[name] = rng.choice(MUTATIONS)(rng, tables[name])
    for name, rows in tables.items():
        form = rng.choice(FORMS)
        if form == "csv" and any(any(isinstance(value, list) for value in row.values()) for row in rows):
            rows = [{k: " > ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        parts = rng.choice((1, 1, 3))
        size = -(-len(rows) // parts)
        for n in range(parts):
            target = folder / name if parts > 1 else folder
            path = write(target, f"part-{n}" if parts > 1 else name, as_text(rows[n * size : (n + 1) * size]), form)
            if rng.random() < 0.3 and damage(rng, path):
                damaged.add(name)
    return {name: len(rows) for name, rows in tables.items()}, damaged


def damage(rng: random.Random, path: Path) -> bool:
    """Compress the file, give it other line ends, or break its bytes: then the number of its rows is not known."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(("gzip", "gzip", "cut", "byte", "quote", "crlf", "blank"))
    if kind == "gzip":
        path.unlink()
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(bytes(data)))
        return False
    at = rng.randrange(len(data) + 1)
    if kind == "cut":
        data = data[:at]
    elif kind == "byte" and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == "quote" and path.suffix == ".csv":
        data[at:at] = b'"'
    elif kind == "crlf" and path.suffix != ".parquet":
        data = data.replace(b"\n", b"\r\n")
    elif kind == "blank" and path.suffix != ".parquet":
        data += b"\n\n"
    path.write_bytes(bytes(data))
    return kind in ("cut", "byte", "quote")


def check(seed: int, folder: Path) -> bool:
    """Whether the folder of a seed is read."""
    rng = random.Random(seed)
    written, damaged = mutated(rng, folder)
    try:
        tables = read_folder(folder, max_bad_share=rng.choice((0.01, 1.0)), unordered=rng.random() < 0.5)
    except InputError as error:
        assert str(error), seed
        return False
    for name in ("ads", "contents", "events"):
        bad = tables.bad_rows.filter(pl.col("table") == name).select("file", "row").n_unique()
        kept = getattr(tables, name).height
        if name in damaged:
            assert kept + bad <= written[name] + 1, (seed, name)  # a quote or a cut may make a row of two
        else:
            assert kept + bad == written[name], (seed, name)
    return True


# 220: no column that the table reads; 933 and 957: a damaged name of a Parquet column.
@pytest.mark.parametrize("seed", [*range(40), 220, 933, 957])
def test_mutated_folder_is_read_or_refused(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path / "logs")


@pytest.mark.soak
def test_two_thousand_mutated_folders(tmp_path: Path) -> None:
    read = sum(check(seed, tmp_path / str(seed)) for seed in range(40, 2040))
    assert 200 < read < 1800
