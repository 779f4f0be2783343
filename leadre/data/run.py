"""Logs -> clean tables, histories, requests.

Reads one source, validates it, splits its requests by time and writes the artifact ``work/<run>/data``: the four tables
(ads, contents, users, events), requests, inventories, empty_requests (without a positive action), empty_inventories
and bad_rows as Parquet (with ``--hide`` also hidden), and summary.json. For your own logs: ``leadre data --source files
--path FOLDER``. The files of the folder are described in ``leadre/data/sources/files.py``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, extras, parquet, progress
from leadre.data.sources.options import FileOptions
from leadre.errors import InputError

if TYPE_CHECKING:  # polars is imported in run, so that --help stays quick
    from leadre.data.split import SplitTimes
    from leadre.data.tables import Tables

ORDER_ONLY = ("amazon",)  # sources whose times are made up, to express an order


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre data``."""

    source: Literal["journey", "files", "amazon", "world"] = config.option("journey", "source of the logs")
    path: Path | None = config.option(None, "folder of the logs; not needed by journey and world")
    positive: Literal["conversion", "click"] = config.option("conversion", "the ad action that counts as success")
    files: FileOptions = config.group(FileOptions())
    valid_from: str | None = config.option(None, "first day of validation; none = by valid_share")
    test_from: str | None = config.option(None, "first day of the test; none = by test_share")
    valid_share: float = config.option(
        0.1, "share of the requests for validation, if no dates are set", above=0, below=1
    )
    test_share: float = config.option(
        0.1, "share of the requests for the test, the last ones, if no dates are set", above=0, below=1
    )
    keep_empty: bool = config.option(False, "all stages read requests without a positive action, not ranking alone")
    hide: float = config.option(
        0.0, "share of the advertised objects that are launched when training ends: cold start", at_least=0, below=1
    )
    hide_days: float = config.option(
        0.0, "days before training ends at which they are launched: so many days of counts", at_least=0
    )
    erase: str = config.option(
        "", "remove these users from the run; IDs separated by commas, or a file with one a line"
    )
    inspect: Path | None = config.option(None, "write a config for the logs in this folder, whatever their layout")
    inspect_to: Path | None = config.option(
        None, "file that --inspect writes; none = the folder's name with .toml, here"
    )
    journey_min_buyers: int = config.option(
        20, "households that bought a line in training; lines with fewer are left out of the source journey", at_least=1
    )
    journey_max_buyers: int = config.option(
        0, "lines of the source journey with more buyers are content and no ads; 0 = no bound", at_least=0
    )
    journey_products: bool = config.option(
        False, "ads of the source journey are products, and live is what any store promotes: ten thousand ads"
    )
    world_users: int = config.option(200, "users of the synthetic market", at_least=1)
    world_ads: int = config.option(120, "ads of the synthetic market", at_least=1)
    world_contents: int = config.option(30, "contents of the synthetic market", at_least=0)


def run(config: Config) -> str | None:
    """Write ``work/<run>/data`` unless it is current. Raises InputError for logs that cannot be used.

    With ``erase``, remove users from what the run holds already. With ``inspect``, write a config for unknown logs and
    return a report.
    """
    if config.inspect is not None:
        return _inspect(config, config.inspect)
    if config.erase:
        _erase(config)
        return None
    if config.hide_days and not config.hide:
        raise InputError(f"--hide-days {config.hide_days:g}: no object is hidden; set --hide above 0")
    output = artifact.Output(
        folder=config.folder("data"),
        kind=artifact.TABLES,
        config=config.flat() | {"inputs": _fingerprint(config), **_order(config)},
        seed=config.seed,
        parents=[],
    )
    if output.skip("data"):
        return None
    from leadre.data.summary import summarise

    with output.create() as temporary:
        progress.say(f"data: reading {config.source}" + (f" from {config.path}" if config.path else ""))
        tables = clean(read(config))
        if config.hide:
            tables = _hide(config, tables, temporary)
        for name, frame in tables.named().items():
            parquet.write(frame, temporary / f"{name}.parquet")
        summary = summarise(tables)
        (temporary / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    rows = summary["rows"]
    requests = summary["requests"]
    empty = rows["empty_requests"]
    apart = f"; {empty:,} without a {config.positive} are kept apart, for ranking" if empty else ""
    progress.say(
        f"data: {rows['users']:,} users, {rows['ads']:,} ads, {rows['events']:,} events, {rows['bad_rows']:,} bad rows;"
        f" requests {requests['train']:,} train, {requests['valid']:,} valid, {requests['test']:,} test{apart}"
        f" -> {output.folder}"
    )
    return None


def _inspect(config: Config, folder: Path) -> str:
    """Write a config for the logs in ``folder``; the report on them."""
    target = config.inspect_to or Path(f"{folder.resolve().name or 'logs'}.toml")
    if target.exists():
        raise InputError(f"{target}: exists already; move it away, or name another file with --inspect-to")
    from leadre.data.inspection import inspect

    inspection = inspect.inspect(folder, config.files, _cut(config))
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(inspection.config)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); name another with --inspect-to") from error
    needed = "read its guesses, then" if inspection.is_complete else "add the missing parts, then"
    progress.say(f"data: wrote {target}; {needed}: leadre data --config {target}")
    return inspection.report


def _cut(config: Config) -> SplitTimes:
    from leadre.data import split

    return split.SplitTimes(
        valid_from=config.valid_from,
        test_from=config.test_from,
        valid_share=config.valid_share,
        test_share=config.test_share,
    )


def _erase(config: Config) -> None:
    from leadre.data import erase

    users = erase.users_of(config.erase)
    erased = erase.erase(config.folder("data"), config.work, users)
    progress.say(f"data: {erased.users:,} of {len(users):,} users were in the run and are erased")
    for folder in erased.folders:
        progress.say(f"data: {folder} was changed")
    progress.say("data: weights of models are not changed; train again if they must forget the users")


def read(config: Config) -> Tables:
    """The validated tables of the source."""
    if config.source == "journey":
        journey = _journey()
        task = journey.Task(
            at_least=config.journey_min_buyers,
            at_most=config.journey_max_buyers or None,
            products=config.journey_products,
        )
        tables: Tables = journey.read(config.path, config.threads, task)
        return tables
    cut = _cut(config)
    if config.source == "world":
        from leadre.data import world

        return world.read(config.seed, config.world_users, config.world_ads, config.world_contents, cut)
    if config.path is None:
        raise InputError(f"--source {config.source} needs --path, the folder of the logs")
    if config.source == "amazon":
        from leadre.data.sources import amazon

        return amazon.read(config.path, config.files.max_bad_share)
    from leadre.data.sources import files

    return files.read(config.path, config.files, cut, config.positive, config.keep_empty)


def _hide(config: Config, tables: Tables, folder: Path) -> Tables:
    """Tables in which a share of the objects is launched after training; their IDs are written into ``folder``."""
    from leadre.data import hidden, histories

    object_ids = hidden.draw(tables.ads["object_id"].fill_null(tables.ads["ad_id"]), config.hide, config.seed)
    parquet.write(object_ids.to_frame("object_id"), folder / histories.HIDDEN)
    until = f"{config.hide_days:g} days before training ends" if config.hide_days else "training ends"
    progress.say(f"data: {len(object_ids):,} objects are hidden until {until}")
    return hidden.launch_late(
        tables, object_ids, positive=config.positive, keep_empty=config.keep_empty, days=config.hide_days
    )


def clean(tables: Tables) -> Tables:
    """The tables, all texts that are shown or put into prompts sanitised (``data/text.py``)."""
    from leadre.data.tables import sanitise

    named = {name: sanitise(name, getattr(tables, name)) for name in ("ads", "contents", "users")}
    return dataclasses.replace(tables, **named)


def _journey() -> ModuleType:
    """The source journey, whose packages are the extra leadre[journey]."""
    extras.require("--source journey", "journey", otherwise="read your own logs: --source files --path FOLDER")
    from leadre.data.sources import journey

    return journey


def _order(config: Config) -> dict[str, bool]:
    """A record for `histories.load`, which the config of a source with real times lacks."""
    return {"order_only": True} if config.source in ORDER_ONLY else {}


def _fingerprint(config: Config) -> dict[str, str]:
    """Name -> size and modification time of each input file, so that new logs under an old path are read again."""
    if config.source == "world":
        return {}
    path = config.path
    if config.source == "journey":
        journey = _journey()
        path = journey.folder_of_package() if path is None else path
    if path is None:
        return {}
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check --path")
    files = [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file())
    stats = {file.relative_to(path.parent).as_posix(): file.stat() for file in files}
    return {name: f"{stat.st_size} bytes, {stat.st_mtime_ns} ns" for name, stat in stats.items()}
