"""What each part is worth: the model built up step by step, and preferences with one thing left out.

`leadre evaluate --stage ablation` is another name for `leadre evaluate-ablation`. Runs `data` and `semid` in
``work/<run>``, then tunes, generates and, where a row has preferences, tunes again in ``work/<run>-<variant>-<seed>``,
by the options that the stages have in the same config. Writes ``work/<run>/evaluate-ablation``: ablation.json,
report.html, ablation.png. What is finished is not done again, so a killed run carries on.
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
    """Options of ``leadre evaluate --stage ablation``."""

    stages: Path | None = config.option(None, "TOML with the stages' options; none = that of --config")
    variants: tuple[str, ...] = config.option((), "only these rows of the table (evaluate/variants.py); empty = all")
    seeds: int = config.option(3, "seeds of a cumulative row, from 0 on; rows with one thing left out have one")
    resamples: int = config.option(1000, "bootstrap resamples over users")


@dataclass(frozen=True, kw_only=True)
class StageConfigs:
    """The config of each stage, as given."""

    data: data.Config
    semid: semid.Config
    tune: tune.Config
    dpo: run_dpo.Config
    generate: generate.Config
    evaluate: evaluate.Config


def run(settings: Config) -> None:
    """Write ``work/<run>/evaluate-ablation``, or say that it is current. InputError for an unknown row."""
    if settings.seeds < 1:
        raise InputError(f"--seeds {settings.seeds}: wants 1 or more")
    stages = load(settings)
    rows = variants.compose(dataclasses.asdict(stages.tune), dataclasses.asdict(stages.dpo), settings.variants)
    jobs = [(row, seed) for row in rows for seed in range(1 if row.left_out else settings.seeds)]
    data.run(stages.data)
    semid.run(stages.semid)
    made: dict[str, dict[int, artifact.Artifact]] = {row.name: {} for row in rows}
    for number, (row, seed) in enumerate(jobs, start=1):
        progress.say(f"ablation: {number} of {len(jobs)}: {row.name} ({row.title}), seed {seed}")
        made[row.name][seed] = make(settings, stages, rows, row, seed)
    _write(settings, stages, rows, made)


def load(settings: Config) -> StageConfigs:
    """The stages' configs out of the file ``stages``, under the shared keys of ``settings``."""
    shared = {name: config.show(getattr(settings, name)) for name in ("run", "work", "seed", "threads")}
    path = settings.stages
    return StageConfigs(
        data=config.load(data.Config, section="data", path=path, flags=shared),
        semid=config.load(semid.Config, section="semid", path=path, flags=shared),
        tune=config.load(tune.Config, section="tune", path=path, flags=shared),
        dpo=config.load(run_dpo.Config, section="tune-dpo", path=path, flags=shared),
        generate=config.load(generate.Config, section="generate", path=path, flags=shared),
        evaluate=config.load(evaluate.Config, section="evaluate", path=path, flags=shared),
    )


def make(settings: Config, stages: StageConfigs, rows: Sequence[Variant], row: Variant, seed: int) -> artifact.Artifact:
    """The lists of one row and seed, in a run of their own. Rows that tune alike share what the first of them tuned.

    ``seed`` is that of training. Which requests are answered is up to the seed of ``settings``, the same for all rows.
    """
    name = _name(settings, row, seed)
    tuner = _name(settings, next(other for other in rows if other.tune == row.tune), seed)
    _share(settings, name, settings.run, "data", "semid")
    if tuner == name:
        tune.run(dataclasses.replace(stages.tune, run=name, seed=seed, **row.tune))
    else:
        _share(settings, name, tuner, "tune-sft")
    if row.dpo is not None:
        prefer = dataclasses.replace(stages.dpo, run=name, seed=seed, **row.dpo)
        if prefer.on_policy:
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
                f"{path}: an artifact of its own, not that of {source}; move it away or choose another run"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(Path("..") / source / step)


def _write(
    settings: Config, stages: StageConfigs, rows: Sequence[Variant], made: Mapping[str, Mapping[int, artifact.Artifact]]
) -> None:
    """Compare the lists and write the artifact, unless it is current."""
    folder = settings.folder("evaluate-ablation")
    tables = artifact.read(settings.folder("data"), artifact.TABLES)
    # their folders share one name, so they are named by row and seed rather than as parents
    lists = {row.name: {str(seed): each.hash for seed, each in made[row.name].items()} for row in rows}
    told = [dataclasses.asdict(row) for row in rows]
    effective = dataclasses.asdict(settings) | {"stages": None, "rows": told, "lists": lists}
    effective |= {"split": stages.evaluate.split, "users": stages.evaluate.users}
    output = artifact.Output(folder=folder, kind=ABLATION, config=effective, seed=settings.seed, parents=[tables])
    if output.skip("ablation"):
        return
    from leadre.data import histories
    from leadre.evaluate.ablation import compare as ablation

    logs = histories.load(tables)
    requests_R = evaluate.choose(stages.evaluate, logs, next(iter(made[rows[0].name].values())))
    with output.create() as temporary:
        found = ablation.compare(logs, requests_R, rows, made, resamples=settings.resamples, seed=settings.seed)
        ablation.write(temporary, found, run=settings.run, split=stages.evaluate.split)
    for line in _summary(found):
        progress.say(line)
    progress.say(f"ablation: {len(rows)} rows -> {folder / 'report.html'}")


def _summary(found: Sequence[AblationRow]) -> list[str]:
    """The table's main columns as text lines for the terminal."""
    columns = ("all/recall@10", "new/recall@10", "all/gmv@10", "new/gmv@10")
    lines = [f"{'row':<20}" + "".join(f"{column:>16}" for column in columns)]
    for row in found:
        lines.append(f"{row.name:<20}" + "".join(f"{row.columns[column]['mean']:>16.4f}" for column in columns))
    return lines
