"""A fine-tuned model + the money of conversions -> a model that prefers the ads of more business value.

`leadre tune --stage dpo` is another name for `leadre tune-dpo`. Reads the artifact ``work/<run>/tune-sft`` and writes
``work/<run>/tune-dpo`` of the same form, with pairs.csv (what the model made of each step's pairs) and pairs.png beside
loss.csv and valid.csv. A killed run resumes from ``work/<run>/.tune-dpo.checkpoint``. The rule on_policy wants
`leadre generate --split train --step generate-negatives` first.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, progress
from leadre.errors import ArtifactError, InputError
from leadre.tune import run as tune

if TYPE_CHECKING:  # torch loads in run, so that --help stays quick
    from leadre.semid.codebook import Codebook
    from leadre.tune.model import TunedModel
    from leadre.tune.preferences.dpo import PreferenceExamples
    from leadre.tune.sft import Recalls

INHERITED = ("seed", "prior", "affinity", "shuffle_ids", "burn_in")  # what a reader asks (`saved.settings`)


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre tune --stage dpo``."""

    live_unbought: bool = config.option(True, "pairs: a conversion over live objects that were not acted on")
    higher_value: bool = config.option(True, "pairs: of two conversions of a request, the one worth more")
    on_policy: bool = config.option(False, "pairs: a conversion over what the model itself ranked above it")
    lists: str = config.option("generate-negatives", "step that holds the lists for on_policy")
    negatives: int = config.option(1, "objects not acted on that each conversion is set against, by each rule")
    value_ratio: float = config.option(2.0, "how many times more a conversion is worth to be preferred for it; above 1")
    margin: float = config.option(0.0, "least reward margin asked of a pair (the gamma of SimPO)")
    value_margin: float = config.option(0.1, "and more for every factor of e in money")
    similarity: bool = config.option(True, "near-duplicates of a conversion count less as what to avoid")
    users: int = config.option(0, "pairs of this many users, drawn by the seed as `leadre generate` does; 0 = all")
    money: float = config.option(
        0.5, "power of its price to which an object counts with the pointer, and of its money a conversion"
    )
    money_prior: float = config.option(0.1, "power of its price to which an object weighs in with the prior")
    loss: Literal["dpo", "simpo"] = config.option("dpo", "against the model before (dpo), or as it stands (simpo)")
    beta: float = config.option(0.1, "reward of one nat of log-likelihood")
    stop_shared: bool = config.option(True, "no gradient of a preference at the codes that both objects share")
    sft_weight: float = config.option(1.0, "weight of the likelihood of the chosen, which keeps it from sinking")
    guard: float = config.option(
        0.02, "stop where validation recall falls by more than this share of fine-tuning's, and by more than chance"
    )
    epochs: int = config.option(1, "passes over the pairs")
    max_steps: int = config.option(0, "stop after so many steps, 0 = all epochs; the learning rate is fitted to it")
    batch_tokens: int = config.option(4096, "positions in a step, padding included")
    learning_rate: float = config.option(1e-4, "peak rate of the body")
    codes_learning_rate: float = config.option(3e-4, "peak rate of the semantic-ID rows")
    weight_decay: float = config.option(0.0, "decoupled weight decay")
    validate_every: int = config.option(50, "steps between validations, which are what the guard sees")
    checkpoint_s: float = config.option(120.0, "seconds between checkpoints")


def run(config: Config) -> None:
    """Write ``work/<run>/tune-dpo``, or say that it is current. InputError for options that cannot be met."""
    _check(config)
    folder, checkpoint = config.folder("tune-dpo"), config.folder(".tune-dpo.checkpoint")
    parents = _parents(config)
    model = parents[2]
    inherited = {name: value for name, value in model.meta["config"].items() if name in INHERITED}
    effective = dataclasses.asdict(config) | {"sft": inherited}
    output = artifact.Output(folder=folder, kind=artifact.MODEL, config=effective, seed=config.seed, parents=parents)
    if output.skip("tune-dpo"):
        return
    import torch

    from leadre.lm.prior import PriceExponents
    from leadre.semid import codebook as codebooks
    from leadre.tune import model as saved
    from leadre.tune import plots, sft
    from leadre.tune.preferences import dpo

    saved.check_ids(model, parents[1])
    if config.threads:
        torch.set_num_threads(config.threads)
    with output.create() as temporary:
        codebook = saved.tuned_ids(codebooks.load(parents[1]), model)
        loaded = saved.load(
            parents[0], codebook, model, training=True, money=PriceExponents(config.money, config.money_prior)
        )
        contests = _contests(config, loaded, codebook, parents[3:])
        history = dpo.train(
            loaded.backbone,
            contests,
            sft.TrainingSchedule(
                **{field.name: getattr(config, field.name) for field in dataclasses.fields(sft.TrainingSchedule)}
            ),
            dpo.PreferenceObjective(
                **{field.name: getattr(config, field.name) for field in dataclasses.fields(dpo.PreferenceObjective)}
            ),
            checkpoint,
            artifact.resume_key(effective, parents),
            tune.validator(config.seed, loaded.backbone, loaded.threads, loaded.live),
            partial(_before, config, parents[0], codebook, model, loaded),
        )
        blocks = loaded.threads.prompter.blocks
        tune.write(temporary, loaded.backbone, loaded.live, blocks, model.path / "tokenizer", history)
        tune.write_figures(temporary / "pairs.csv", history.pairs)
        plots.preferences(history, config.guard, temporary / "pairs.png")
    shutil.rmtree(checkpoint, ignore_errors=True)


def _before(
    config: Config, tables: artifact.Artifact, codebook: Codebook, model: artifact.Artifact, loaded: TunedModel
) -> Recalls:
    """Recall of the fine-tuned model without prices, which is let go again; ``loaded`` is the one that will learn."""
    from leadre.tune import model as saved

    plain = loaded
    if config.money or config.money_prior:
        plain = saved.load(tables, codebook, model, training=False, moments=loaded.threads.moments)
    return tune.validator(config.seed, plain.backbone, plain.threads, plain.live)()


def _check(config: Config) -> None:
    """Raise InputError for a number that no run can do with, before anything is read."""
    for name in ("negatives", "epochs", "batch_tokens", "validate_every"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: wants 1 or more")
    for name in ("max_steps", "users", "sft_weight", "guard", "margin", "value_margin", "money", "money_prior"):
        if getattr(config, name) < 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: wants 0 or more")
    if config.beta <= 0:
        raise InputError(f"--beta {config.beta}: wants more than 0")
    if config.value_ratio <= 1:
        raise InputError(f"--value-ratio {config.value_ratio}: wants more than 1, or a conversion would beat itself")
    if not (config.live_unbought or config.higher_value or config.on_policy):
        raise InputError("no rule makes pairs: let one of live_unbought, higher_value, on_policy be true")


def _parents(config: Config) -> list[artifact.Artifact]:
    """Tables, codebook, fine-tuned model and, where the rule on_policy wants it, what that very model generated."""
    tables = artifact.read(config.folder("data"), artifact.TABLES)
    codebook = artifact.read(config.folder("semid"), artifact.CODEBOOK)
    model = artifact.read(config.folder("tune-sft"), artifact.MODEL)
    if not config.on_policy:
        return [tables, codebook, model]
    lists = artifact.read(config.folder(config.lists), artifact.LISTS)
    if any(lists.meta["parents"].get(parent.path.name) != parent.hash for parent in (tables, codebook, model)):
        raise ArtifactError(
            f"{lists.path}: another model or other logs made these lists; "
            f"run `leadre generate --split train --step {config.lists}` again"
        )
    return [tables, codebook, model, lists]


def _contests(
    config: Config, loaded: TunedModel, codebook: Codebook, lists: list[artifact.Artifact]
) -> PreferenceExamples:
    """The pairs that the rules find, ready to be trained on. InputError where there are none."""
    import numpy as np
    import polars as pl

    from leadre.data import histories
    from leadre.tune.preferences import pairs
    from leadre.tune.preferences.dpo import PreferenceExamples

    logs, live = loaded.threads.logs, loaded.live
    rules = pairs.PairRules(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(pairs.PairRules)}
    )
    chosen = histories.choose_requests(logs, split="train", users=config.users, seed=config.seed)
    requests = np.intersect1d(chosen, loaded.threads.train_R)  # not those that fine-tuning left out as a burn-in
    listed = pairs.ranked_objects(pl.read_parquet(lists[0].path / "lists.parquet"), logs) if lists else {}
    if lists and not listed.keys() & set(requests.tolist()):
        raise InputError(
            f"{lists[0].path} holds no list of these training requests; "
            f"run `leadre generate --split train --step {config.lists}`, with the same users and seed"
        )
    found = pairs.mine_pairs(
        loaded.threads.moments, live, codebook.embeddings_OD[live.rows_O], requests, rules, config.seed, listed
    )
    if not len(found):
        raise InputError("the rules find no pair in the training requests; switch on more rules or more users")
    counts = ", ".join(f"{int((found.rule_P == rule).sum()):,} {name}" for rule, name in enumerate(pairs.RULES))
    progress.say(f"tune-dpo: pairs: {counts}")
    return PreferenceExamples(loaded.threads, live, loaded.backbone.layout, found)
