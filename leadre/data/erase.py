"""Erasure of users from a run: its tables, and the artifacts made from them that name users or number their requests.

The tables lose the users, so they get a new hash. Each artifact that has the old hash as a parent gets the new one:
children accept the tables as theirs. Requests are numbered by their position in the tables: lists lose those of the
users, and count the others from 0 again. Weights are not changed.

A journal in the run's folder holds old and new hashes, and the old numbers of the requests that stay, but no user. It
is on the disk before an artifact is replaced, so that the next call finishes what a killed one began.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from leadre import artifact, parquet
from leadre.data.histories import REQUEST_ORDER
from leadre.data.summary import summarise
from leadre.data.tables import Tables
from leadre.errors import InputError
from leadre.extended_ids import covers

JOURNAL = ".erasing"  # folder beside the tables
NAMING = ("users", "events", "requests", "empty_requests")  # tables with user IDs
NUMBER = "request"  # column or key of a request's number, in lists and in cases
_case = re.compile(r'\s*<article class="case">.*?</article>', re.DOTALL)


class Erased(NamedTuple):
    """The users found in the tables, and the folders of the artifacts that were changed."""

    users: int
    folders: list[Path]


def users_of(option: str) -> list[str]:
    """The IDs of the option `erase`: those in a file, one a line, or separated by commas. InputError for none."""
    path = Path(option)
    texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else option.split(",")
    users = [text.strip() for text in texts if text.strip()]
    if not users:
        raise InputError(f"erase = {option!r}: names no user; give IDs separated by commas, or a file with one a line")
    return users


def erase(folder: Path, work: Path, users: Collection[str]) -> Erased:
    """Remove users from the tables in ``folder``, and from the artifacts below ``work`` that were made from them.

    An erasure covers an ID as an extended ID of every source too. ArtifactError if the tables or a child are damaged,
    InputError if no training request of another user would be left.
    """
    journal = folder.parent / JOURNAL
    folders = _finish(journal, folder, work, users)
    tables = artifact.read(folder, artifact.TABLES)
    named = _named(folder, users)
    if not named:
        return Erased(0, folders)
    requests = pl.read_parquet(folder / "requests.parquet").sort(REQUEST_ORDER)
    kept = requests.with_row_index(NUMBER).filter(~_of(named))
    if not (kept["split"] == "train").any():
        raise InputError(f"{folder}: no training request of another user is left; delete the run {folder.parent}")
    journal.mkdir()
    parquet.write(kept.select(pl.col(NUMBER).cast(pl.Int32)), journal / "kept.parquet")
    artifact.rewrite(tables, lambda copy: _without(copy, named), {}, lambda new: _record(journal, tables.hash, new))
    return Erased(len(named), [*folders, folder, *_finish(journal, folder, work, named)])


def _finish(journal: Path, folder: Path, work: Path, users: Collection[str]) -> list[Path]:
    """Change the children of the artifacts that were replaced, and end the erasure; the changed folders.

    If the tables have not been replaced yet, nothing has happened.
    """
    changed: dict[Path, None] = {}
    hashes = _hashes(journal)
    if artifact.glance(folder, artifact.TABLES).hash in hashes.values():
        old_tables = next(iter(hashes))
        kept = pl.read_parquet(journal / "kept.parquet")
        while children := artifact.children(work, _hashes(journal)):
            for child in children:
                is_numbered = old_tables in child.meta["parents"].values() and _has_numbers(child.path)
                if is_numbered:
                    _renumber_artifact(child, kept, users, journal)
                else:
                    artifact.reparent(child, _hashes(journal))
                changed[child.path] = None
    shutil.rmtree(journal, ignore_errors=True)
    return list(changed)


def _renumber_artifact(child: artifact.Artifact, kept: pl.DataFrame, users: Collection[str], journal: Path) -> None:
    artifact.rewrite(
        child,
        lambda copy: _renumber(copy, kept, users),
        _hashes(journal),
        lambda new: _record(journal, child.hash, new),
    )


def _hashes(journal: Path) -> dict[str, str]:
    """Old hash -> new hash of the artifacts that were replaced, the tables first."""
    path = journal / "hashes.json"
    hashes: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return hashes


def _record(journal: Path, old: str, new: str) -> None:
    """Store that an artifact is about to be replaced."""
    artifact.replace_text(journal / "hashes.json", json.dumps(_hashes(journal) | {old: new}))


def _named(folder: Path, users: Collection[str]) -> list[str]:
    """The IDs in the tables that an erasure of ``users`` covers."""
    ids = (pl.read_parquet(folder / f"{name}.parquet", columns=["user_id"])["user_id"].unique() for name in NAMING)
    return sorted({user_id for column in ids for user_id in column.drop_nulls() if covers(users, user_id)})


def _of(users: Sequence[str]) -> pl.Expr:
    return pl.col("user_id").is_in(list(users))


def _without(folder: Path, users: Sequence[str]) -> None:
    """Remove users from the files of the tables. A bad row whose reason names one of them is removed too."""
    names_one = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, users))})(?!\w)").search
    frames = {name: pl.read_parquet(folder / f"{name}.parquet") for name in Tables.names()}
    for name in NAMING:
        frames[name] = frames[name].filter(~_of(users))
    bad_rows = frames["bad_rows"]
    frames["bad_rows"] = bad_rows.filter([names_one(why or "") is None for why in bad_rows["why"]])
    for name in (*NAMING, "bad_rows"):
        parquet.write(frames[name], folder / f"{name}.parquet")
    summary = json.dumps(summarise(Tables(**frames)), indent=2)
    (folder / "summary.json").write_text(summary + "\n", encoding="utf-8")


def _has_numbers(folder: Path) -> bool:
    """Whether an artifact numbers requests, or shows some of them as examples."""
    return any(NUMBER in pl.read_parquet_schema(path) for path in folder.glob("*.parquet")) or any(
        (folder / name).exists() for name in ("cases.jsonl", "report.html")
    )


def _renumber(folder: Path, kept: pl.DataFrame, users: Collection[str]) -> None:
    """Remove the requests that the tables have lost from the files of an artifact, and count the others from 0."""
    new_of = {old: new for new, old in enumerate(kept[NUMBER])}
    for path in folder.glob("*.parquet"):
        frame = pl.read_parquet(path)
        if NUMBER in frame.columns:
            numbers = frame[NUMBER].replace_strict(new_of, default=None, return_dtype=pl.Int32)
            parquet.write(frame.with_columns(numbers).filter(pl.col(NUMBER).is_not_null()), path)
    cases = folder / "cases.jsonl"
    if cases.exists():
        rows = [json.loads(line) for line in cases.read_text(encoding="utf-8").splitlines()]
        left = [row | {NUMBER: new_of[row[NUMBER]]} for row in rows if row[NUMBER] in new_of]
        cases.write_text("".join(json.dumps(row) + "\n" for row in left), encoding="utf-8")
    page = folder / "report.html"
    if page.exists():
        texts = [html.escape(user) for user in users]

        def without_theirs(match: re.Match[str]) -> str:
            return "" if any(text in match[0] for text in texts) else match[0]

        page.write_text(_case.sub(without_theirs, page.read_text(encoding="utf-8")), encoding="utf-8")
