"""Measures the value of each part: the model built up step by step, and variants with one part left out.

Runs `data` and `semid` in ``work/<run>``, then `tune`, `tune dpo` for rows with preferences, and `generate` in
``work/<run>-<variant>-<seed>``, with the options of these stages in the same config. Writes
``work/<run>/evaluate-ablation``: ablation.json, report.html, ablation.png. Finished steps are skipped, so a killed run
resumes. Its TOML section is [evaluate-ablation].
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leadre import artifact, config, progress
from leadre.data import run as data
from leadre.errors import InputError
from leadre.evaluate import run as evaluate
from leadre.evaluate.ablation import variants
from leadre.evaluate.ablation.variants import Variant
from leadre.generate import run as generate
from leadre.semid import run as semid
from leadre.tune import run as tune
from leadre.tune.preferences import run as run_dpo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from leadre.evaluate.ablation.compare import AblationRow

ABLATION = artifact.Kind("ablation", 1)


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre evaluate ablation``."""

    stages: Path | None = config.option(None, "TOML with the stages' options; none = that of --config")
    variants: tuple[str, ...] = config.option(
        (), "only these rows of the table (evaluate/ablation/variants.py); empty = all"
    )
    seeds: int = config.option(3, "seeds of a cumulative row, from 0 on", at_least=1)
    left_out_seeds: int = config.option(1, "seeds of a row with something left out, from 0 on", at_least=1)
    compare: bool = config.option(True, "false: train and generate lists only, for a long ablation in parts")
    resamples: int = config.option(1000, "bootstrap resamples over users", at_least=1)


@dataclass(frozen=True, kw_only=True)
class StageConfigs:
    """The config of each stage, before the changes of a row."""

    data: data.Config
    semid: semid.Config
    tune: tune.Config
    dpo: run_dpo.Config
    generate: generate.Config
    evaluate: evaluate.Config


def run(settings: Config) -> None:
    """Write ``work/<run>/evaluate-ablation`` unless it is current. Raises InputError for an unknown row."""
    stages = load(settings)
    rows = variants.compose(stages.tune.flat(), stages.dpo.flat(), settings.variants)
    jobs = [(row, seed) for row in rows for seed in range(settings.left_out_seeds if row.left_out else settings.seeds)]
    data.run(stages.data)
    semid.run(stages.semid)
    lists: dict[str, dict[int, artifact.Artifact]] = {row.name: {} for row in rows}
    for number, (row, seed) in enumerate(jobs, start=1):
        progress.say(f"ablation: {number} of {len(jobs)}: {row.name} ({row.title}), seed {seed}")
        lists[row.name][seed] = make(settings, stages, rows, row, seed)
    if settings.compare:
        _write(settings, stages, rows, lists)


def load(settings: Config) -> StageConfigs:
    """The stages' configs from the file ``stages``, with the shared keys of ``settings``."""
    stages = {
        "data": data.Config,
        "semid": semid.Config,
        "tune": tune.Config,
        "tune-dpo": run_dpo.Config,
        "generate": generate.Config,
        "evaluate": evaluate.Config,
    }
    configs = config.load_stages(settings, settings.stages, stages)
    return StageConfigs(dpo=configs.pop("tune-dpo"), **configs)


def make(settings: Config, stages: StageConfigs, rows: Sequence[Variant], row: Variant, seed: int) -> artifact.Artifact:
    """The lists of one row and seed, in a run of their own. Rows with the same tuning share the model of the first.

    ``seed`` is that of training. The requests are drawn by the seed of ``settings``, the same for all rows.
    """
    name = _name(settings, row, seed)
    tuner = _name(settings, next(other for other in rows if other.tune == row.tune), seed)
    _share(settings, name, settings.run, "data", "semid")
    if tuner == name:
        tune.run(stages.tune.changed({"run": name, "seed": seed, **row.tune}))
    else:
        _share(settings, name, tuner, "tune-sft")
    if row.dpo is not None:
        prefer = stages.dpo.changed({"run": name, "seed": seed, **row.dpo})
        if prefer.rules.on_policy:
            negatives = dataclasses.replace(stages.generate, run=tuner, seed=seed, users=prefer.users, model="sft")
            generate.run(dataclasses.replace(negatives, split="train", step=prefer.lists))
            if tuner != name:
                _share(settings, name, tuner, prefer.lists)
        run_dpo.run(prefer)
    answers = dataclasses.replace(stages.generate, run=name, split=stages.evaluate.split, step="generate")
    generate.run(dataclasses.replace(answers, model="sft" if row.dpo is None else "dpo"))
    return artifact.read(settings.work / name / "generate", artifact.LISTS)


def _name(settings: Config, row: Variant, seed: int) -> str:
    return f"{settings.run}-{row.name}-{seed}"


def _share(settings: Config, name: str, source: str, *steps: str) -> None:
    """Link these artifacts of the run ``source`` into the run ``name``."""
    for step in steps:
        path = settings.work / name / step
        if path.exists() and not path.is_symlink():
            raise InputError(
                f"{path}: exists and is not a link to that of {source}; move it away or choose another --run"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(Path("..") / source / step)


def _write(
    settings: Config,
    stages: StageConfigs,
    rows: Sequence[Variant],
    lists: Mapping[str, Mapping[int, artifact.Artifact]],
) -> None:
    """Compare the lists and write the artifact, unless it is current."""
    tables = artifact.read(settings.folder("data"), artifact.TABLES)
    # their folders share one name, so they are recorded by row and seed rather than as parents
    hashes = {row.name: {str(seed): source.hash for seed, source in lists[row.name].items()} for row in rows}
    effective = settings.flat() | {
        "stages": None,
        "rows": [dataclasses.asdict(row) for row in rows],
        "lists": hashes,
        "split": stages.evaluate.split,
        "users": stages.evaluate.users,
    }
    output = artifact.Output(
        folder=settings.folder("evaluate-ablation"),
        kind=ABLATION,
        config=effective,
        seed=settings.seed,
        parents=[tables],
    )
    if output.skip("ablation"):
        return
    from leadre import readings
    from leadre.data import histories
    from leadre.evaluate.ablation import compare as ablation

    logs = histories.load(tables)
    requests_R = evaluate.choose(stages.evaluate, logs, next(iter(lists[rows[0].name].values())))
    if stages.evaluate.split == "test":
        names = [row.name for row in rows]
        readings.record(settings.work, tables, names, run=settings.run, requests=len(requests_R), config=output.config)
    with output.create() as temporary:
        table = ablation.compare(logs, requests_R, rows, lists, resamples=settings.resamples, seed=settings.seed)
        ablation.write(temporary, table, run=settings.run, split=stages.evaluate.split)
    for line in _summary(table):
        progress.say(line)
    progress.say(f"ablation: {len(rows)} rows -> {output.folder / 'report.html'}")


def _summary(table: Sequence[AblationRow]) -> list[str]:
    """The table's main columns as text lines for the terminal."""
    columns = ("all/recall@10", "new/recall@10", "all/gmv@10", "new/gmv@10")
    lines = [f"{'row':<20}" + "".join(f"{column:>16}" for column in columns)]
    for row in table:
        lines.append(f"{row.name:<20}" + "".join(f"{row.columns[column]['mean']:>16.4f}" for column in columns))
    return lines
