"""Replays logged bid requests offline, by the serving code and from the same artifacts, and compares the responses.

Reads the state of a bidder, which may be running. Writes ``work/<run>/evaluate-replay``: replay.json (requests
compared, requests left out with the reason) and differences.csv. Any difference ends the command with an error. The
bidder's options are those of [serve] in the same config, or the flags here; requests that a bidder with other options
answered are left out. Its TOML section is [evaluate-replay].
"""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import json
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leadre import artifact, config, progress
from leadre.errors import InputError, ParityError
from leadre.serve import run as serve

if TYPE_CHECKING:
    from leadre.evaluate.replay.answer import ReplayReport
    from leadre.serve.processes.model_server import ModelServer

REPLAY = artifact.Kind("replay", 1)


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre evaluate replay``."""

    last: int = config.option(10_000, "number of the last requests in the log to replay", at_least=1)
    generate: bool = config.option(True, "load the language model; if off, requests that it answered are left out")
    state: str = config.option("", "state folder of the bidder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML with the [serve] of the bidder; none = that of --config")


def run(settings: Config) -> None:
    """Write ``work/<run>/evaluate-replay``. Raises InputError for an empty log, ParityError for any difference."""
    flags = {"run": settings.run, "work": str(settings.work)} | ({"state": settings.state} if settings.state else {})
    bidder = config.load(serve.Config, section="serve", path=settings.stages, flags=flags)
    paths = serve.paths_of(bidder)
    if not paths.events.exists():
        raise InputError(f"{paths.events}: there is no event log here; check --state")
    report = _replay(settings, bidder)
    if not report.logged:
        raise InputError(f"{paths.events}: holds no request; start `leadre serve` and send some first")
    _write(settings, report)
    for line in summary(report):
        progress.say(f"replay: {line}")
    if report.differences:
        requests = len({difference.request_id for difference in report.differences})
        raise ParityError(
            f"{requests:,} of {report.compared:,} requests have another response than logged;"
            f" see {settings.folder('evaluate-replay') / 'differences.csv'}"
        )


def summary(report: ReplayReport) -> list[str]:
    """The report as lines for the terminal."""
    from leadre.evaluate.replay.answer import SKIPPED

    sources = ", ".join(f"{count:,} {source}" for source, count in report.sources.most_common())
    gaps = ", ".join(f"{gap:.1e} ({source})" for source, gap in sorted(report.gaps.items()) if source != "none")
    lines = [
        f"{report.alike:,} of {report.compared:,} requests alike ({sources or 'nothing'}), {report.bids:,} bids;"
        f" scores at most {gaps or 'nothing'} apart"
    ]
    lines += [f"{count:,} not compared: {SKIPPED[why]}" for why, count in report.skipped.most_common()]
    return lines


def _replay(settings: Config, bidder: serve.Config) -> ReplayReport:
    from leadre import database
    from leadre.evaluate.replay import answer as replay
    from leadre.serve.bidding.exploration import ExplorationDraws
    from leadre.serve.catalogue import database as records
    from leadre.serve.catalogue import eligibility
    from leadre.serve.rankers.published import PublishedRankers
    from leadre.store import open_store

    paths = serve.paths_of(bidder)
    options = serve.settings_of(bidder)
    with (
        closing(open_store(paths.store)) as store,
        closing(database.connect(paths.manage_database, records.MIGRATIONS, read_only=True)) as connection,
        _model(bidder) if settings.generate else nullcontext() as model,
    ):
        world = replay.ReplayWorld(
            log=paths.events,
            settings=options,
            catalogue=eligibility.load(connection, options.seat, options.ignored_rules),
            store=store,
            draws=ExplorationDraws.open(paths.exploration_key),
            model=model,
            rankers=PublishedRankers(paths.rankers),
        )
        return asyncio.run(replay.replay(world, settings.last))


def _model(bidder: serve.Config) -> AbstractContextManager[ModelServer | None]:
    """A context manager of the model server that the bidder would start; of None if it has no model."""
    folder = serve.model_of(bidder)
    if folder is None:
        return nullcontext()
    from leadre.serve.processes.model_server import ModelServer

    tables = artifact.read(bidder.folder("data"), artifact.TABLES)
    codebook = artifact.read(bidder.folder("semid"), artifact.CODEBOOK)
    return ModelServer(tables, codebook, artifact.read(folder, artifact.MODEL), beam=bidder.beam)


def _write(settings: Config, report: ReplayReport) -> None:
    folder = settings.folder("evaluate-replay")
    effective = settings.flat() | {"stages": None}
    figures = {**vars(report), "differences": len(report.differences), "compared": report.compared}
    with artifact.create(folder, kind=REPLAY, config=effective, seed=settings.seed, parents=[]) as temporary:
        (temporary / "replay.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        with (temporary / "differences.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["request_id", "what", "logged", "replayed"])
            table.writerows(dataclasses.astuple(difference) for difference in report.differences)
