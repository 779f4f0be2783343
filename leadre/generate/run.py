"""Requests -> ranked live ads, generated offline by the tuned model.

Writes the artifact ``work/<run>/generate`` (or another ``--step``): lists.parquet (request, view, ads, scores:
log-probabilities within the live set) and cases.jsonl (six requests with their prompts, for the report). A killed run
resumes from ``work/<run>/.<step>.parts``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leadre import artifact, config, parquet, progress
from leadre.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre generate``."""

    model: Literal["sft", "dpo"] = config.option("sft", "the model: that of tune-sft or of tune-dpo")
    split: Literal["train", "valid", "test"] = config.option("test", "split of the requests to generate lists for")
    users: int = config.option(0, "only the requests of this many users, drawn by the seed; 0 = all", at_least=0)
    visits: int = config.option(0, "at most this many requests of each user, drawn by the seed; 0 = all", at_least=0)
    last_visits: int = config.option(
        -1, "show this many last visits of each history: how sparse users are served; -1 = all", at_least=-1
    )
    beam: int = config.option(24, "beams per request, at least as many as ads per list", at_least=1)
    top: int = config.option(20, "ads per list", at_least=1)
    step: str = config.option("generate", "name of the artifact's folder: generate, or generate-NAME")


def run(config: Config) -> None:
    """Write ``work/<run>/<step>`` unless it is current. Raises ArtifactError if data, IDs or model are missing."""
    if config.step != "generate" and not config.step.startswith("generate-"):
        raise InputError(f"--step {config.step}: must be generate or generate-NAME; other folders are of other stages")
    if config.last_visits >= 0 and config.split == "train":
        raise InputError("--last-visits: histories of training requests stay whole; use --split valid or test")
    folder = config.folder(config.step)
    parents = [
        artifact.read(config.folder("data"), artifact.TABLES),
        artifact.read(config.folder("semid"), artifact.CODEBOOK),
        artifact.read(config.folder(f"tune-{config.model}"), artifact.MODEL),
    ]
    effective = {name: value for name, value in config.flat().items() if name != "step"}
    output = artifact.Output(folder=folder, kind=artifact.LISTS, config=effective, seed=config.seed, parents=parents)
    if output.skip("generate"):
        return
    from leadre.data import histories, moment
    from leadre.generate import batch
    from leadre.tune import model as saved

    saved.check_ids(parents[2], parents[1])
    with output.create() as temporary:
        moments = moment.of_requests(moment.cut(histories.load(parents[0]), config.last_visits))
        training = config.split == "train"
        engine = batch.load(*parents, training=training, threads=config.threads, moments=moments)
        requests = histories.choose_requests(
            engine.threads.logs, split=config.split, users=config.users, visits=config.visits, seed=config.seed
        )
        if config.split == "train":  # a learnt prior has counts of the time before that
            requests = requests[engine.threads.moments.at_us_M[requests] >= engine.live.from_us]
        parts = batch.ResumableParts(config.folder(f".{config.step}.parts"), artifact.resume_key(effective, parents))
        lists = batch.generate(engine, requests, parts, beam=config.beam, top=config.top, seed=config.seed)
        parquet.write(lists, temporary / "lists.parquet")
        batch.write_cases(engine, lists, temporary / "cases.jsonl", seed=config.seed)
    parts.remove()
    progress.say(f"generate: lists of {len(requests):,} requests in {folder}")
