"""Folders of mutated logs, and the account of each: rows read, bad rows and rows left out are the rows of the files."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa

from leadre.data.tables import ROW
from tests.data.conftest import START, Rows, market, write

CELLS = (
    None,
    "",
    " ",
    "0",
    "-1",
    "1e400",
    "NaN",
    "2,50",
    "\x00",
    '"',
    "a\nb",
    "2026-13-45",
    "1772352000",
    "99999999999999999999",
    "ad",
    "é\u202e",
    ROW,
    True,
    1.5,
    10**30,
    [],
    ["x", None],
    {"a": {"b": 1}},
)
FORMS = ("csv", "jsonl", "parquet")
DELIMITERS = {".tsv": "\t", ".csv": ";", ".psv": "|"}
COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}
OTHERS = ("notes.txt", "event.csv", "old/ads.csv", "ads.xml", "clicks.parquet")  # files that no table reads
HIDDEN = ("_SUCCESS", ".events.csv.crc")
OPTIONS = (
    ("--unordered", "true"),
    ("--positive", "click"),
    ("--keep-empty", "true"),
    ("--time-unit", "s"),
    ("--time-zone", "Asia/Shanghai"),
    ("--decimal-comma", "true"),
    ("--content-prefix", "content-"),
    ("--profile-numbers", "age"),
)


@dataclass(kw_only=True)
class Folder:
    """A mutated folder: the rows written into its files, by table, and the arguments of ``leadre data``."""

    rows: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)  # tables with broken bytes, whose number of rows is not known
    unread: list[str] = field(default_factory=list)  # entries of the folder that no table reads
    arguments: list[str] = field(default_factory=list)


def mutate_cells(rng: random.Random, rows: Rows) -> Rows:
    column = rng.choice(list(rows[0])[1:] or list(rows[0]))  # the first is an ID, without which little is read
    for n in rng.sample(range(len(rows)), max(1, len(rows) // rng.choice((2, 50)))):
        rows[n] = rows[n] | {column: rng.choice(CELLS)}
    return rows


def drop_column(rng: random.Random, rows: Rows) -> Rows:
    column = rng.choice(list(rows[0])) if len(rows[0]) > 1 else None
    return [{key: value for key, value in row.items() if key != column} for row in rows]


def rename_column(rng: random.Random, rows: Rows) -> Rows:
    column = rng.choice(list(rows[0]))
    name = rng.choice((column.upper(), f" {column}", column[:-1], "", ROW, "value", "price", "bid"))
    return [{(name if key == column else key): value for key, value in row.items()} for row in rows]


def repeat_rows(rng: random.Random, rows: Rows) -> Rows:
    return rows + rng.sample(rows, min(2, len(rows)))


def drop_rows(rng: random.Random, rows: Rows) -> Rows:
    return rows[: rng.choice((1, len(rows) // 2 or 1))]


def shuffle(rng: random.Random, rows: Rows) -> Rows:
    return rng.sample(rows, len(rows))


def change_type(rng: random.Random, rows: Rows) -> Rows:
    """One column in another type, from some row on, so that parts of a table differ."""
    column = rng.choice(list(rows[0]))
    convert = rng.choice((str, lambda value: [value], lambda value: float(len(str(value))), bool))
    start = rng.choice((0, len(rows) // 3))
    return [row | {column: convert(row.get(column))} if n >= start else row for n, row in enumerate(rows)]


MUTATIONS: tuple[Callable[[random.Random, Rows], Rows], ...] = (
    *(mutate_cells, mutate_cells, mutate_cells, shuffle, shuffle),
    *(drop_column, rename_column, repeat_rows, drop_rows, change_type),
)


def as_text(rows: Rows) -> Rows:
    """Values as one type a column, as a Parquet file needs."""
    types: dict[str, set[type]] = {}
    for row in rows:
        for key, value in row.items():
            types.setdefault(key, set()).update({type(value)} - {type(None)})
    plain = (bool, int, float)
    texts = {key for key, kinds in types.items() if len(kinds) > 1 or not kinds.isdisjoint((str, dict))}
    texts |= {key for row in rows for key, value in row.items() if isinstance(value, plain) and abs(value) >= 2**63}
    texts |= {
        key for row in rows for key, value in row.items() if isinstance(value, list) and set(map(type, value)) - {str}
    }
    return [{key: str(v) if key in texts and v is not None else v for key, v in row.items()} for row in rows]


def full_market(rng: random.Random) -> dict[str, Rows]:
    """The market of the tests, in some folders with a table of inventory and one of listed requests."""
    tables = market()
    for n, ad in enumerate(tables["ads"]):
        ad |= {"brand": f"Maker {n}", "price": n + 0.5, "status": "active", "ends_at": START + timedelta(days=90)}
    if rng.random() < 0.3:
        window = {"placement_id": rng.choice((None, "top")), "starts_at": START, "ends_at": START + timedelta(days=90)}
        tables["inventory"] = [{"ad_id": ad["ad_id"], **window} for ad in tables["ads"]]
    if rng.random() < 0.3:
        tables["requests"] = [
            {"request_id": f"extra{n}", "user_id": f"u{n % 3}", "at": START + timedelta(days=n), "placement_id": "top"}
            for n in range(20)
        ]
    return tables


def write_mutated(rng: random.Random, folder: Path) -> Folder:
    """Write a market with some mutations into ``folder``."""
    result = Folder()
    tables = full_market(rng)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(tables))
        tables[name] = rng.choice(MUTATIONS)(rng, tables[name])
    for name, rows in tables.items():
        _write_table(rng, folder, name, rows, result)
        result.rows[name] = len(rows)
    for name in (*OTHERS, *HIDDEN):
        if rng.random() < 0.05:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("user_id,at\nu1,2026-03-01\n")
            result.unread += [name.split("/")[0]] * (name in OTHERS)
    result.arguments = ["--max-bad-share", rng.choice(("0.01", "1", "1", "1"))]
    for option, value in rng.sample(OPTIONS, rng.choice((0, 0, 1, 2))):
        result.arguments += [option, value]
    return result


def _write_table(rng: random.Random, folder: Path, name: str, rows: Rows, result: Folder) -> None:
    """A table as a file, or as three parts of one folder, in one of which a value of each row may be its name."""
    form = rng.choice(FORMS)
    if form == "csv":
        rows = [{k: " > ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    rows = rows if form == "jsonl" else as_text(rows)
    parts = rng.choice((1, 1, 3))
    size = -(-len(rows) // parts)
    for n in range(parts):
        target = folder / name if parts > 1 else folder
        if parts > 1 and rng.random() < 0.2:
            target = target / rng.choice(("dt=2026-03-01", "deep/deeper", "placement_id=top", "a=b=c"))
        path = write(target, f"part-{n}" if parts > 1 else name, rows[n * size : (n + 1) * size], form)
        if rng.random() < 0.4:
            path = dress(rng, path)
        if rng.random() < 0.05 and damage(rng, path):
            result.damaged.add(name)
        if rng.random() < 0.15:
            ending, compress = rng.choice(list(COMPRESS.items()))
            path.with_name(path.name + ending).write_bytes(compress(path.read_bytes()))
            path.unlink()


def dress(rng: random.Random, path: Path) -> Path:
    """Write the same rows in another form: separators, quotes, line ends, an array of JSON, letters of the ending."""
    if path.suffix == ".parquet":
        return path.rename(path.with_suffix(rng.choice((".pq", ".PARQUET"))))
    data = path.read_bytes()
    if path.suffix == ".jsonl" and rng.random() < 0.5:
        path.unlink()
        path = path.with_suffix(".json")
        path.write_bytes(b"[\n" + data.strip().replace(b"\n", b",\n") + b"\n]")
        return path
    if path.suffix == ".csv" and rng.random() < 0.5:
        ending, delimiter = rng.choice(list(DELIMITERS.items()))
        text = io.StringIO(newline="")
        quoting = rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
        cells = csv.reader(io.StringIO(data.decode(), newline=""))
        csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(cells)
        path.unlink()
        path = path.with_suffix(ending)
        data = text.getvalue().encode()
    data = rng.choice((data, data + b"\n\n", b"\xef\xbb\xbf" + data))
    path.write_bytes(data if b"\n" in data.strip(b"\n") and rng.random() < 0.5 else data.replace(b"\n", b"\r\n"))
    return path


def damage(rng: random.Random, path: Path) -> bool:
    """Break the bytes of a file; whether they differ afterwards."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data) + 1)
    kind = rng.choice(("cut", "byte", "quote", "utf-16", "header"))
    if kind == "cut":
        data = data[:at]
    elif kind == "byte" and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == "quote":
        data[at:at] = b'"'
    elif kind == "utf-16" and path.suffix.lower() not in (".parquet", ".pq"):
        data = bytearray(bytes(data).decode().encode(rng.choice(("utf-16", "utf-16-le"))))
    elif kind == "header":
        data = data[data.find(b"\n") + 1 :]
    is_changed = bytes(data) != path.read_bytes()
    path.write_bytes(bytes(data))
    return is_changed


def faults(folder: Folder, output: str, data: Path) -> list[str]:
    """The faults of a folder that was read into the artifact ``data`` with the ``output`` of the command."""
    bad_rows = pl.read_parquet(data / "bad_rows.parquet")
    bad = dict(bad_rows.group_by("table").agg(pl.struct("file", "row").n_unique()).iter_rows())
    tables = {path.stem: pl.scan_parquet(path) for path in data.glob("*.parquet")}
    height = {name: frame.select(pl.len()).collect().item() for name, frame in tables.items()}
    problems = []
    for name in ("ads", "contents", "users", "events"):
        written = folder.rows[name]
        good = written - bad.get(name, 0)
        kept = height[name]
        if name == "users":  # beside those of the table, users of the events have a row
            fits = kept >= good or name in folder.damaged
        elif name in folder.damaged:
            fits = kept <= good + 1  # a quote or a cut may make a row of two
        else:
            fits = kept == good
        if not fits:
            problems.append(f"{name}: {kept} rows kept, {bad.get(name, 0)} bad, of {written}")
    problems += [f"{name} is not named" for name in folder.unread if name not in output]
    return problems
