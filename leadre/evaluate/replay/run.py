"""Is offline what was online: logged bid requests answered again, from the same artifacts, by the same function.

`leadre evaluate --stage replay` is another name for `leadre evaluate-replay`. Reads the state of a bidder, which may be
running. Writes ``work/<run>/evaluate-replay``: replay.json with what was compared, what could not be and why, and
differences.csv. Any difference ends the command with an error. [serve] of the same config, or the flags here, say what
`leadre serve` was told; requests that were answered by other options are not compared.
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
    """Options of ``leadre evaluate --stage replay``."""

    last: int = config.option(10_000, "so many of the last requests in the log")
    generate: bool = config.option(True, "load the language model; without it, requests that it answered are left out")
    state: str = config.option("", "the bidder's folder; default that of [serve], else work/<run>/state")
    stages: Path | None = config.option(None, "TOML whose [serve] the bidder has; none = that of --config")


def run(settings: Config) -> None:
    """Write ``work/<run>/evaluate-replay``. InputError where nothing was logged, ParityError for any difference."""
    if settings.last < 1:
        raise InputError(f"--last {settings.last}: wants 1 or more")
    flags = {"run": settings.run, "work": str(settings.work)} | ({"state": settings.state} if settings.state else {})
    bidder = config.load(serve.Config, section="serve", path=settings.stages, flags=flags)
    paths = serve.paths_of(bidder)
    if not paths.events.exists():
        raise InputError(f"{paths.events}: no bidder has logged anything here; check --state")
    report = _replay(settings, bidder)
    if not report.logged:
        raise InputError(f"{paths.events}: holds no request; let `leadre serve` answer some first")
    _write(settings, report)
    for line in told(report):
        progress.say(f"replay: {line}")
    if report.differences:
        requests = len({each.request_id for each in report.differences})
        raise ParityError(
            f"{requests:,} of {report.compared:,} requests were answered otherwise;"
            f" {settings.folder('evaluate-replay') / 'differences.csv'} tells each"
        )


def told(report: ReplayReport) -> list[str]:
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
    from leadre.store import open_store

    paths = serve.paths_of(bidder)
    with (
        closing(open_store(paths.store)) as store,
        closing(database.connect(paths.manage_database, records.MIGRATIONS, read_only=True)) as connection,
        _model(bidder) if settings.generate else nullcontext() as model,
    ):
        world = replay.ReplayWorld(
            log=paths.events,
            settings=serve.settings_of(bidder),
            catalogue=eligibility.load(connection, bidder.seat),
            store=store,
            draws=ExplorationDraws.open(paths.exploration_key),
            model=model,
        )
        return asyncio.run(replay.replay(world, settings.last))


def _model(bidder: serve.Config) -> AbstractContextManager[ModelServer | None]:
    """The language model that the bidder would load, to be used in a ``with``; None where it has none."""
    folder = serve.model_of(bidder)
    if folder is None:
        return nullcontext()
    from leadre.serve.processes.model_server import ModelServer

    tables = artifact.read(bidder.folder("data"), artifact.TABLES)
    codebook = artifact.read(bidder.folder("semid"), artifact.CODEBOOK)
    return ModelServer(tables, codebook, artifact.read(folder, artifact.MODEL), beam=bidder.beam)


def _write(settings: Config, report: ReplayReport) -> None:
    folder = settings.folder("evaluate-replay")
    effective = {**dataclasses.asdict(settings), "stages": None}
    summary = {**vars(report), "differences": len(report.differences), "compared": report.compared}
    with artifact.create(folder, kind=REPLAY, config=effective, seed=settings.seed, parents=[]) as made:
        (made / "replay.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        with (made / "differences.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["request_id", "what", "logged", "replayed"])
            table.writerows(dataclasses.astuple(each) for each in report.differences)
