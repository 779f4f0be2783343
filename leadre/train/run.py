"""Logs -> a report: runs all stages, sized to a budget of time and to the memory of this machine.

Runs `data`, `semid`, `tune`, `generate` and `evaluate` in ``work/<run>`` with the options of the config. After the IDs
it measures a few training steps and beam searches, and chooses the options that decide time and memory, as far as the
config leaves them open. The choice and its reasons are the artifact ``work/<run>/train`` (plan.json), so that the same
command continues with it after a kill; stages that are current are skipped. Returns the path of the report.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadre import artifact, config, progress
from leadre.data import run as data
from leadre.errors import ArtifactError, InputError
from leadre.evaluate import run as evaluate
from leadre.generate import run as generate
from leadre.semid import run as semid
from leadre.train import plan as plans
from leadre.tune import run as tune

if TYPE_CHECKING:
    from leadre.train.machine import Peak
    from leadre.train.plan import Plan

PLAN = artifact.Kind("plan", 1)
FILE = "plan.json"
STAGES: Mapping[str, type[config.Common]] = {
    "data": data.Config,
    "semid": semid.Config,
    "tune": tune.Config,
    "generate": generate.Config,
    "evaluate": evaluate.Config,
}
FOLDERS: Mapping[str, artifact.Kind] = {
    "data": artifact.TABLES,
    "semid": artifact.CODEBOOK,
    "train": PLAN,
    "tune-sft": artifact.MODEL,
    "generate": artifact.LISTS,
}
NEEDED_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre train``."""

    stages: Path | None = config.option(None, "TOML with the stages' options; none = that of --config")
    budget: str = config.option("10m", "time for all stages: 90s, 10m, 2h; none = no bound")
    memory_gb: float = config.option(
        4.0, "memory for the stages, in GB; never more than 60 % of the free memory", above=0
    )


@dataclass(frozen=True, kw_only=True)
class StageConfigs:
    """The config of each stage, and the options that the file sets, by section."""

    data: data.Config
    semid: semid.Config
    tune: tune.Config
    generate: generate.Config
    evaluate: evaluate.Config
    fixed: dict[str, set[str]]

    def changed(self, changes: plans.Changes) -> StageConfigs:
        """A copy with ``changes``, except of options that the file sets."""
        configs: dict[str, Any] = {}
        for section, values in changes.items():
            free = {name: value for name, value in values.items() if name not in self.fixed[section]}
            configs[section] = getattr(self, section).changed(free)
        return dataclasses.replace(self, **configs)


def run(settings: Config) -> str:
    """Run all stages that are not current; the path of the report. InputError if the budget or the log is too small."""
    from leadre.train import machine

    started_s = time.monotonic()
    budget_s = plans.seconds_of(settings.budget)
    free_mb = machine.free_mb()
    limit_mb = plans.memory_limit_mb(1000 * settings.memory_gb, free_mb)
    stages = load(settings)
    before = _seconds_of(settings)
    with machine.watch(plans.FREE_SHARE * free_mb) as peak:
        data.run(stages.data)
        tables = artifact.read(settings.folder("data"), artifact.TABLES)
        _check_labels(tables)
        stages = stages.changed(_options_of_log(settings, stages, tables))
        semid.run(stages.semid)
        codebook = artifact.read(settings.folder("semid"), artifact.CODEBOOK)
        output = _output(settings, stages, [tables, codebook])
        if not output.is_current():
            if budget_s is not None and time.monotonic() - started_s >= budget_s:
                raise InputError(f"budget: nothing is left of {settings.budget} after data and IDs; raise --budget")
            plan = _choose(stages, [tables, codebook], started_s, budget_s, peak, limit_mb)
            _write(output, plan)
        changes, reasons = _read(output.folder)
        for reason in reasons:
            progress.say(f"train: {reason}")
        stages = stages.changed(changes)
        tune.run(stages.tune)
        generate.run(stages.generate)
        evaluate.run(stages.evaluate)
    elapsed = progress.duration(time.monotonic() - started_s)
    earlier = _earlier(before, _seconds_of(settings))
    progress.say(
        f"train: {elapsed}{earlier}, {max(peak.mb, artifact.peak_rss_mb()):,.0f} MB of memory at most; the report:"
    )
    return str(settings.folder("evaluate") / "report.html")


def show(settings: Config) -> str:
    """The effective options of the command and of each stage; those that were chosen, once a plan is stored."""
    stages = load(settings)
    sections = {"train": settings.flat()}
    try:
        tables = artifact.glance(settings.folder("data"), artifact.TABLES)
        codebook = artifact.glance(settings.folder("semid"), artifact.CODEBOOK)
        stages = stages.changed(_options_of_log(settings, stages, tables))
        output = _output(settings, stages, [tables, codebook])
        is_stored = output.is_current()
    except ArtifactError:
        is_stored = False
    if is_stored:
        changes, _ = _read(output.folder)
        stages = stages.changed(changes)
    else:
        progress.say(
            "train: options that are chosen by measurement have their defaults here, until the command has run"
        )
    sections |= {name: _own(getattr(stages, name)) for name in STAGES}
    return "\n\n".join(f"[{name}]\n{config.lines(values)}" for name, values in sections.items())


def load(settings: Config) -> StageConfigs:
    """The stages' configs from the file ``stages``, with the shared keys of ``settings``."""
    configs = config.load_stages(settings, settings.stages, STAGES)
    return StageConfigs(**configs, fixed={section: config.keys_of(section, settings.stages) for section in STAGES})


def _seconds_of(settings: Config) -> dict[tuple[str, str], float]:
    """(folder, hash) of each finished stage -> the seconds that it took."""
    seconds = {}
    for name, kind in FOLDERS.items():
        with suppress(ArtifactError):
            finished = artifact.glance(settings.folder(name), kind)
            seconds[name, finished.meta.get(artifact.META_HASH, "")] = float(finished.meta["wall_s"])
    return seconds


def _earlier(before: Mapping[tuple[str, str], float], now: Mapping[tuple[str, str], float]) -> str:
    """Words on the stages that earlier commands finished and this one took over; "" if there are none."""
    names = [name for name, _ in before.keys() & now.keys()]
    if not names:
        return ""
    taken_s = sum(before[key] for key in before.keys() & now.keys())
    in_order = [name for name in FOLDERS if name in names]
    return f" beside {progress.duration(taken_s)} of earlier commands ({', '.join(in_order)})"


def _summary(tables: artifact.Artifact) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((tables.path / "summary.json").read_text(encoding="utf-8"))
    return summary


def _check_labels(tables: artifact.Artifact) -> None:
    """InputError if a split has no request with a label; a line for the user if there are few."""
    requests = _summary(tables)["requests"]
    empty = [split for split in NEEDED_SPLITS if not requests[split]]
    if empty:
        raise InputError(
            f"{tables.path}: no {' and no '.join(empty)} request has a {tables.meta['config']['positive']}; bring a "
            "longer log, or set `valid_from` and `test_from` (or the shares) in [data]"
        )
    if requests["train"] < plans.FEW_LABELS:
        progress.say(
            f"train: {requests['train']:,} training and {requests['test']:,} test requests with a "
            f"{tables.meta['config']['positive']}: too few to learn from or to compare by; the figures are chance"
        )


def _options_of_log(settings: Config, stages: StageConfigs, tables: artifact.Artifact) -> plans.Changes:
    """Options that log and budget decide without a measurement."""
    summary = _summary(tables)
    is_learnt = plans.has_learnt_prior(
        summary["requests"]["train"],
        summary["inventory"]["mean_ads_per_request"],
        plans.seconds_of(settings.budget),
    )
    is_free = stages.tune.prior and not stages.tune.affinity
    objects = summary["rows"]["ads"] + summary["rows"]["contents"]
    return {
        "semid": plans.semid_options(objects, _acted_on(tables)),
        "tune": {"learnt_prior": True, **plans.BESIDE_LEARNT} if is_learnt and is_free else {"learnt_prior": False},
    }


def _acted_on(tables: artifact.Artifact) -> int:
    """The number of advertised objects with a positive action in training time."""
    import polars as pl

    frames = {name: pl.scan_parquet(tables.path / f"{name}.parquet") for name in ("ads", "events", "requests")}
    end = frames["requests"].filter(pl.col("split") == "valid").select(pl.min("at")).collect().item()
    positive = (pl.col("domain") == "ad") & (pl.col("action") == tables.meta["config"]["positive"])
    events = frames["events"].filter(positive & (pl.col("at") < end)).select("item_id")
    objects = frames["ads"].select("ad_id", pl.col("object_id").fill_null(pl.col("ad_id")))
    joined = events.join(objects, left_on="item_id", right_on="ad_id").select(pl.col("object_id").n_unique())
    return int(joined.collect().item())


def _output(settings: Config, stages: StageConfigs, parents: list[artifact.Artifact]) -> artifact.Output:
    """The stored plan: current as long as budget, logs, IDs and the options of training and lists are the same."""
    own = {name: value for name, value in settings.flat().items() if name != "stages"}
    options = {"tune": _own(stages.tune), "generate": _own(stages.generate)}
    return artifact.Output(
        folder=settings.folder("train"), kind=PLAN, config=own | options, seed=settings.seed, parents=parents
    )


def _own(stage: config.Common) -> dict[str, Any]:
    """The options of a stage without those that all stages share."""
    shared = {field.name for field in dataclasses.fields(config.Common)}
    return {name: value for name, value in stage.flat().items() if name not in shared}


def _choose(
    stages: StageConfigs,
    parents: list[artifact.Artifact],
    started_s: float,
    budget_s: float | None,
    peak: Peak,
    limit_mb: float,
) -> Plan:
    """Measure and choose."""
    from leadre.train import probe

    schedule = stages.tune.schedule
    until_s = math.inf if budget_s is None else started_s + budget_s
    is_fixed = "batch_tokens" in stages.fixed["tune"]
    costs = probe.measure(
        stages.tune,
        *parents,
        batches=(schedule.batch_tokens,) if is_fixed else plans.BATCHES,
        beam=stages.generate.beam,
        peak=peak,
        limit_mb=limit_mb,
        until_s=until_s,
    )
    left_s = None if budget_s is None else until_s - time.monotonic()
    return plans.choose(costs, left_s=left_s, limit_mb=limit_mb, epochs=schedule.epochs, fixed=_fixed(stages))


def _fixed(stages: StageConfigs) -> plans.Fixed:
    """The options of the plan that the file sets."""
    names = {field.name for field in dataclasses.fields(plans.Fixed)}
    values: dict[str, Any] = {}
    for section, stage in (("tune", stages.tune), ("generate", stages.generate)):
        values |= {name: stage.flat()[name] for name in names & stages.fixed[section]}
    return plans.Fixed(**values)


def _write(output: artifact.Output, plan: Plan) -> None:
    with output.create() as temporary:
        (temporary / FILE).write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n", encoding="utf-8")


def _read(folder: Path) -> tuple[plans.Changes, list[str]]:
    """(options by stage, reasons) of the stored plan. ArtifactError if there is none."""
    plan = json.loads((artifact.read(folder, PLAN).path / FILE).read_text(encoding="utf-8"))
    changes = {
        section: {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        for section, values in plan["changes"].items()
    }
    return changes, plan["reasons"]
