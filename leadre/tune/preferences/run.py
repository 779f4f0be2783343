"""A fine-tuned model + the value of conversions -> a model that prefers ads of more business value.

Reads the artifact ``work/<run>/tune-sft`` and writes ``work/<run>/tune-dpo`` of the same form, with pairs.csv (rewards
of each step's pairs) and pairs.png beside loss.csv and valid.csv. Its TOML section is [tune-dpo]. A killed run resumes
from ``work/<run>/.tune-dpo.checkpoint``. The rule on_policy needs
`leadre generate --split train --step generate-negatives` first.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from leadre import artifact, config, progress
from leadre.errors import ArtifactError, InputError
from leadre.tune import run as tune
from leadre.tune.options import TrainingSchedule
from leadre.tune.preferences.options import PairRules, PreferenceObjective

if TYPE_CHECKING:  # torch is imported in run, so that --help stays quick
    from collections.abc import Mapping

    from leadre.data.histories import Logs
    from leadre.semid.codebook import Codebook
    from leadre.tune.answers import Outcomes
    from leadre.tune.model import TunedModel
    from leadre.tune.preferences.dpo import PreferenceExamples
    from leadre.tune.preferences.values import ObjectValues

# Options of `leadre tune` that readers of this model need as well (`leadre.tune.model.settings`).
INHERITED = ("seed", "prior", "affinity", "learnt_prior", "shuffle_ids", "burn_in", "freeze_body", "zero_codes")


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre tune dpo``."""

    rules: PairRules = config.group(PairRules())
    lists: str = config.option("generate-negatives", "step that holds the lists for on_policy")
    users: int = config.option(
        0, "pairs of this many users, drawn by the seed as `leadre generate` does; 0 = all", at_least=0
    )
    objective: PreferenceObjective = config.group(PreferenceObjective())
    money_prior: float = config.option(0.1, "exponent of the price of an object in the prior", at_least=0)
    schedule: TrainingSchedule = config.group(
        TrainingSchedule(epochs=1, learning_rate=2e-5, codes_learning_rate=6e-5, weight_decay=0.0, validate_every=50)
    )


def run(config: Config) -> None:
    """Write ``work/<run>/tune-dpo`` unless it is current. Raises InputError for options that cannot be met."""
    rules = config.rules
    if not (rules.live_unbought or rules.higher_value or rules.on_policy):
        raise InputError("no rule makes pairs: set one of live_unbought, higher_value, on_policy to true")
    if config.objective.loss == "none" and not config.objective.sft_weight:
        raise InputError("--loss none --sft-weight 0: nothing would be trained; set --sft-weight above 0")
    parents = _parents(config)
    tables, ids, model = parents[:3]
    inherited = {name: value for name, value in model.meta["config"].items() if name in INHERITED}
    output = artifact.Output(
        folder=config.folder("tune-dpo"),
        kind=artifact.MODEL,
        config=config.flat() | {"sft": inherited},
        seed=config.seed,
        parents=parents,
    )
    if output.skip("tune-dpo"):
        return
    import torch

    from leadre.lm.prior import PriceExponents
    from leadre.semid import codebook as codebooks
    from leadre.tune import model as saved
    from leadre.tune import plots
    from leadre.tune.preferences import dpo

    saved.check_ids(model, ids)
    if config.threads:
        torch.set_num_threads(config.threads)
    checkpoint = config.folder(".tune-dpo.checkpoint")
    with output.create() as temporary:
        codebook = saved.tuned_ids(codebooks.load(ids), model)
        exponents = PriceExponents(config.objective.money, config.money_prior)
        tuned = saved.load(tables, codebook, model, training=True, money=exponents)
        schedule = dataclasses.replace(config.schedule, seed=config.seed)
        history = dpo.train(
            tuned.backbone,
            _examples(config, tuned, codebook, _values(config, tables, tuned.threads.logs), parents[3:]),
            schedule,
            config.objective,
            checkpoint,
            artifact.resume_key(output.config, parents),
            tune.validator(schedule, tuned.backbone, tuned.threads, tuned.live),
            partial(_outcomes_before, config, tables, codebook, model, tuned),
        )
        blocks = tuned.threads.prompter.blocks
        tune.write(temporary, tuned.backbone, tuned.live, blocks, model.path / "tokenizer", history)
        tune.write_figures(temporary / "pairs.csv", history.pairs)
        plots.preferences(history, config.objective.guard, temporary / "pairs.png")
    shutil.rmtree(checkpoint, ignore_errors=True)


def _outcomes_before(
    config: Config, tables: artifact.Artifact, codebook: Codebook, model: artifact.Artifact, tuned: TunedModel
) -> Mapping[str, Outcomes]:
    """Outcomes of the fine-tuned model without prices, loaded for this measurement; ``tuned`` is the one to train."""
    from leadre.tune import model as saved

    plain = tuned
    if config.objective.money or config.money_prior:
        plain = saved.load(tables, codebook, model, training=False, moments=tuned.threads.moments)
    schedule = dataclasses.replace(config.schedule, seed=config.seed)
    return tune.validator(schedule, plain.backbone, plain.threads, plain.live)()


def _parents(config: Config) -> list[artifact.Artifact]:
    """Tables, codebook, fine-tuned model and, if on_policy is set, the lists that this very model generated."""
    tables = artifact.read(config.folder("data"), artifact.TABLES)
    codebook = artifact.read(config.folder("semid"), artifact.CODEBOOK)
    model = artifact.read(config.folder("tune-sft"), artifact.MODEL)
    if not config.rules.on_policy:
        return [tables, codebook, model]
    lists = artifact.read(config.folder(config.lists), artifact.LISTS)
    if any(lists.meta["parents"].get(parent.path.name) != parent.hash for parent in (tables, codebook, model)):
        raise ArtifactError(
            f"{lists.path}: another model or other logs made these lists; "
            f"run `leadre generate --split train --step {config.lists}` again"
        )
    return [tables, codebook, model, lists]


def _values(config: Config, tables: artifact.Artifact, logs: Logs) -> ObjectValues:
    """The values that ``config`` selects. Raises InputError for eCPM if the log has no bids."""
    from leadre.tune.preferences.values import ObjectValues, training_values

    if config.rules.value == "price":
        return ObjectValues(logs)
    impression_nanos_A = training_values(tables, logs)
    known = int((impression_nanos_A > 0).sum())
    progress.say(f"tune-dpo: eCPM of {known:,} of {len(impression_nanos_A):,} ads; the others count as typical")
    return ObjectValues(logs, impression_nanos_A)


def _examples(
    config: Config, tuned: TunedModel, codebook: Codebook, values: ObjectValues, lists: list[artifact.Artifact]
) -> PreferenceExamples:
    """The pairs that the rules find, as training examples. Raises InputError if there are none."""
    import numpy as np
    import polars as pl

    from leadre.data import histories
    from leadre.tune.preferences import pairs
    from leadre.tune.preferences.dpo import PreferenceExamples

    logs = tuned.threads.logs
    live = tuned.live
    sample = histories.choose_requests(logs, split="train", users=config.users, seed=config.seed)
    requests = np.intersect1d(sample, tuned.threads.train_R)  # without the burn-in, which fine-tuning left out
    listed = pairs.ranked_objects(pl.read_parquet(lists[0].path / "lists.parquet"), logs) if lists else {}
    if lists and not listed.keys() & set(requests.tolist()):
        raise InputError(
            f"{lists[0].path} holds no list of these training requests; "
            f"run `leadre generate --split train --step {config.lists}` with the same users and seed"
        )
    embeddings_OD = codebook.embeddings_OD[live.rows_O]
    mined = pairs.mine_pairs(
        tuned.threads.moments, values, live, embeddings_OD, requests, config.rules, config.seed, listed
    )
    if not len(mined):
        raise InputError("the rules find no pair in the training requests; switch on more rules or more users")
    counts = ", ".join(f"{int((mined.rule_P == rule).sum()):,} {name}" for rule, name in enumerate(pairs.RULES))
    progress.say(f"tune-dpo: pairs: {counts}")
    return PreferenceExamples(tuned.threads, live, tuned.backbone.layout, mined)
