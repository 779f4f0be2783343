"""A tuned model from its artifact, with all that it needs to answer requests of one log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leadre.artifact import Artifact
from leadre.data import histories
from leadre.data.histories import Logs
from leadre.errors import ArtifactError
from leadre.lm import affinity as affinities
from leadre.lm import backbone as backbones
from leadre.lm import pretrained
from leadre.lm.backbone import Backbone
from leadre.lm.prior import InventoryPrior, PriceExponents
from leadre.semid import codebook as codebooks
from leadre.semid.codebook import Codebook
from leadre.tune import prompts
from leadre.tune.threads import ThreadBuilder


@dataclass(frozen=True)
class TunedModel:
    """The model on its device, and threads and live sets as it was tuned on them."""

    backbone: Backbone
    threads: ThreadBuilder
    live: InventoryPrior


def load(
    tables: Artifact,
    codebook: Codebook,
    model: Artifact,
    *,
    training: bool,
    logs: Logs | None = None,
    money: PriceExponents | None = None,
) -> TunedModel:
    """Load model, prompts' form and live sets; ``codebook`` from `tuned_ids`, ``training`` as in `load_live`.

    ``logs`` stand in for those of the tables, with the same users, ads and objects; ``money`` for that of the model.
    """
    logs = logs or histories.load(tables)
    live = load_live(logs, codebook, model, training=training, money=money)
    backbone = backbones.load(model.path, live.codes_OL).to(backbones.pick_device())
    tokenizer = pretrained.tokenizer(model.path / "tokenizer")
    prompter = prompts.PromptWriter(logs, tokenizer, backbone.layout, prompts.load_blocks(model.path))
    return TunedModel(backbone, ThreadBuilder(prompter, settings(model).get("burn_in", 0.0)), live)


def settings(model: Artifact) -> Mapping[str, Any]:
    """The config of the fine-tuning: the artifact's own, or where preferences came after it, that of its parent."""
    config = model.meta["config"]
    found: Mapping[str, Any] = config.get("sft", config)
    return found


def load_live(
    logs: Logs, ids: Codebook, model: Artifact, *, training: bool, money: PriceExponents | None = None
) -> InventoryPrior:
    """Live sets with the prior that the model was tuned under; ``training`` requests too (`affinity.held_out`)."""
    chosen = settings(model)
    if money is None:
        config = model.meta["config"]
        money = PriceExponents(config.get("money", 0.0), config.get("money_prior", 0.0))  # of fine-tuning: none
    if not (chosen["prior"] and chosen["affinity"]):
        return InventoryPrior(logs, ids, prior=chosen["prior"], money=money)
    others = affinities.held_out(logs, ids, chosen["seed"]) if training else []
    known = affinities.load(model.path, len(ids.object_ids))
    return InventoryPrior(logs, ids, affinity=known, held_out=others, money=money)


def tuned_ids(codebook: Codebook, model: Artifact) -> Codebook:
    """The IDs as the model learnt them: a control run permutes them among the objects."""
    chosen = settings(model)
    return codebooks.shuffled(codebook, chosen["seed"]) if chosen["shuffle_ids"] else codebook


def check_ids(model: Artifact, codebook: Artifact) -> None:
    """Raise ArtifactError where the model learnt other IDs than those of ``codebook`` or of the one it extends."""
    known = {codebook.hash, *codebook.meta["parents"].values()}
    if model.meta["parents"].get("semid") not in known:
        raise ArtifactError(
            f"{model.path}: was tuned on other semantic IDs than those in {codebook.path}; run `leadre tune` again"
        )
