"""Simulates days of bid requests through the serving code, in one process and faster than the clock.

Campaigns with budgets bid over the ads of the run; competitors' prices come from histograms, clicks and conversions
from known rates; the ledger holds the budgets. The bidder's options are those of [serve] in the same config. Writes
``work/<run>/evaluate-simulate``: simulation.json, campaigns.csv, report.html, spend.png and market.png, of the last
day. Its TOML section is [evaluate-simulate].
"""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadre import artifact, config, progress
from leadre.auction.pacing import plan as plans
from leadre.auction.pacing.plan import Plan
from leadre.errors import InputError
from leadre.evaluate.simulation import prices as price_laws
from leadre.evaluate.simulation.options import MarketOptions
from leadre.serve import run as serve
from leadre.units import S_PER_DAY, US_PER_DAY

if TYPE_CHECKING:
    from leadre.evaluate.simulation.exchange import DayLog
    from leadre.evaluate.simulation.measure import CampaignDay, Charge
    from leadre.evaluate.simulation.world import World
    from leadre.serve.paths import StatePaths
    from leadre.serve.settings import Settings

SIMULATION = artifact.Kind("simulation", 1)
MEMORY = Path("/dev/shm")  # a file system in memory: a bidder syncs thousands of batches to its disk
STATE_BYTES = 4_000  # of the state folder for a request
COLUMNS = (
    *("campaign_id", "bid_type", "budget_nanos", "charges_of_budget", "demand", "is_feasible", "is_judged"),
    *("eligible", "bids", "wins", "spent", "off_plan"),
)


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre evaluate simulate``."""

    stages: Path | None = config.option(None, "TOML with the [serve] of the bidder; none = that of --config")
    prices: Path | None = config.option(
        None, "JSON of competitors' prices: site -> counts by hundredths of a CPM; none = a log-normal law"
    )
    days: int = config.option(
        2, "days; the figures are of the last, for which the others give forecast and rates", at_least=1, at_most=31
    )
    scratch: Path | None = config.option(
        None, "folder for the bidder's state meanwhile; none = in memory if the system has room, else a temporary one"
    )
    market: MarketOptions = config.group(MarketOptions())


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """The logs of all days, their charges, and the seconds that they took."""

    days: Sequence[DayLog]
    charges: Sequence[Charge]
    wall_s: float


def run(settings: Config) -> None:
    """Write ``work/<run>/evaluate-simulate`` unless it is current. Raises InputError for options that cannot be met."""
    flags = {"run": settings.run, "work": str(settings.work)}
    options = serve.settings_of(config.load(serve.Config, section="serve", path=settings.stages, flags=flags))
    if settings.market.budget_low > settings.market.budget_high:
        raise InputError(
            f"--budget-low {settings.market.budget_low} is above --budget-high {settings.market.budget_high}"
        )
    prices = price_laws.built_in() if settings.prices is None else price_laws.read(settings.prices)
    tables = artifact.read(settings.folder("data"), artifact.TABLES)
    effective = settings.flat() | {"stages": None, "scratch": None, "serve": repr(options), "law": prices.digest()}
    output = artifact.Output(
        folder=settings.folder("evaluate-simulate"),
        kind=SIMULATION,
        config=effective | {"prices": None},
        seed=settings.seed,
        parents=[tables],
    )
    if output.skip("simulate"):
        return
    from leadre.evaluate.simulation import world as worlds

    object_ids, titles = _objects(tables)
    world = worlds.draw(settings.market, object_ids, titles, prices, settings.seed)
    with _scratch(settings) as folder:
        simulated = asyncio.run(_simulate(settings, options, world, prices, folder / "state"))
    _write(settings, output, world, simulated)


async def _simulate(
    settings: Config, options: Settings, world: World, prices: price_laws.Prices, folder: Path
) -> Simulated:
    from leadre.evaluate.simulation import world as worlds
    from leadre.evaluate.simulation.bidder import Bidder
    from leadre.evaluate.simulation.exchange import Exchange

    days = []
    started_s = time.perf_counter()
    async with Bidder(folder, world, options, settings.seed) as bidder:
        exchange = Exchange(bidder, world, settings.seed)
        for day in range(settings.days):
            auctions = worlds.auctions(settings.market, prices, day, settings.seed)
            with progress.track(f"simulate: day {day + 1} of {settings.days}", settings.market.requests) as advance:
                days.append(await exchange.run_day(auctions, advance))
        await exchange.drain(worlds.START_US + settings.days * US_PER_DAY)
        faults = bidder.writer.ledger.verify()
        assert not faults, faults[0]
    wall_s = time.perf_counter() - started_s
    return Simulated(days=days, charges=list(charges_of(bidder.paths, world, days)), wall_s=wall_s)


def charges_of(paths: StatePaths, world: World, days: Sequence[DayLog]) -> Iterator[Charge]:
    """The charges of the event log, each on the day of its bid, as the ledger has it."""
    from leadre.evaluate.simulation.measure import Charge
    from leadre.serve.events import event_log
    from leadre.serve.events.records import EventRecord

    row_of = {campaign.campaign_id: row for row, campaign in enumerate(world.campaigns)}
    day_of = {bid_id: day for day, log in enumerate(days) for bid_id in log.bid_ids}
    for entry in event_log.read(paths.events):
        if isinstance(entry.record, EventRecord) and entry.record.outcome.charge_nanos:
            outcome = entry.record.outcome
            yield Charge(row_of[outcome.campaign_id], day_of[outcome.bid_id], outcome.at_us, outcome.charge_nanos)


def _objects(tables: artifact.Artifact) -> tuple[list[str], list[str]]:
    """(IDs, titles) of the objects of the run's ads, sorted by ID."""
    import polars as pl

    ads = pl.scan_parquet(tables.path / "ads.parquet").select(
        pl.coalesce("object_id", "ad_id").alias("object_id"), pl.col("title").fill_null("")
    )
    objects = ads.unique("object_id", keep="first", maintain_order=True).sort("object_id").collect()
    return objects["object_id"].to_list(), objects["title"].to_list()


@contextmanager
def _scratch(settings: Config) -> Iterator[Path]:
    """A temporary folder for the bidder's state. InputError if the named folder cannot be used."""
    folder = settings.scratch
    if folder is None and MEMORY.is_dir():
        needed = settings.days * settings.market.requests * STATE_BYTES
        if shutil.disk_usage(MEMORY).free > needed:
            folder = MEMORY
        else:
            progress.say(f"simulate: {MEMORY} lacks {needed / 1e6:,.0f} MB; the state is on disk, which is slower")
    try:
        with tempfile.TemporaryDirectory(prefix="leadre-", dir=folder) as name:
            yield Path(name)
    except OSError as error:
        raise InputError(f"--scratch {folder}: {error.strerror or error}; name a folder with room") from error


def _write(settings: Config, output: artifact.Output, world: World, simulated: Simulated) -> None:
    from leadre.evaluate import plots
    from leadre.evaluate.simulation import measure, report

    last = settings.days - 1
    log = simulated.days[last]
    campaigns = measure.campaign_days(world.campaigns, _plans(settings, simulated.days), log, simulated.charges, last)
    figures = measure.figures(log, campaigns)
    requests = settings.days * settings.market.requests
    speed = {"requests_per_s": requests / simulated.wall_s, "times": settings.days * S_PER_DAY / simulated.wall_s}
    with output.create() as temporary:
        content = json.dumps({**figures, "speed": speed}, indent=2)
        (temporary / "simulation.json").write_text(content + "\n", encoding="utf-8")
        _write_campaigns(temporary / "campaigns.csv", campaigns)
        page = report.page(settings.run, figures, log, campaigns)
        (temporary / "report.html").write_text(page, encoding="utf-8")
        plots.png(report.spend_figure(campaigns), temporary / "spend.png")
        plots.png(report.market_figure(log), temporary / "market.png")
    for line in summary(figures):
        progress.say(f"simulate: {line}")
    progress.say(
        f"simulate: {speed['requests_per_s']:,.0f} requests/s, {speed['times']:,.0f} times as fast as the clock"
        f" -> {output.folder / 'report.html'}"
    )


def _write_campaigns(path: Path, campaigns: Sequence[CampaignDay]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows([getattr(campaign, column) for column in COLUMNS] for campaign in campaigns)


def _plans(settings: Config, days: Sequence[DayLog]) -> list[Plan]:
    """The plan of each campaign for the last day, by the traffic of the days before; "asap" is compared with even."""
    if settings.market.plan != "traffic":
        plan = plans.front_loaded() if settings.market.plan == "front_loaded" else plans.even()
        return [plan] * settings.market.campaigns
    plan_C = []
    for row in range(settings.market.campaigns):
        forecast_Q = plans.forecast([log.eligible_QC[:, row].tolist() for log in days[:-1]])
        plan_C.append(plans.even() if forecast_Q is None else plans.by_traffic(forecast_Q))
    return plan_C


def summary(figures: Mapping[str, Any]) -> list[str]:
    """The figures as lines for the terminal."""
    missed = ", ".join(f"{reason} {row['of_paid']:.3f}" for reason, row in figures["missed"].items())
    return [
        f"{figures['bids']:,} bids for {figures['requests']:,} requests, {figures['wins']:,} won at a CPM of"
        f" {figures['paid_cpm']:.3f}; the market's mean is {figures['market_cpm']:.3f}",
        f"{figures['judged']:,} of {figures['campaigns']:,} campaigns are judged: {figures['on_plan']:.3f} on plan,"
        f" {figures['spent_95']:.3f} spent 95 %, {figures['within_05']:.3f} were within 5 % of the plan",
        f"overpaid {figures['overpaid']['of_paid']:.3f} of the money paid, paid above the value"
        f" {figures['paid_above_value']['of_paid']:.3f}; value missed: {missed or 'none'}",
    ]
