"""Load a tuned model from its artifact, with the prompts and the prior that it was tuned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leadre.artifact import Artifact
from leadre.data import histories, moment
from leadre.data.histories import Logs
from leadre.data.moment import Moments
from leadre.errors import ArtifactError
from leadre.lm import affinity as affinities
from leadre.lm import backbone as backbones
from leadre.lm import counts_networks, pretrained
from leadre.lm.backbone import Backbone
from leadre.lm.decode import BeamSearcher
from leadre.lm.prior import InventoryPrior, PriceExponents
from leadre.semid import codebook as codebooks
from leadre.semid.codebook import Codebook
from leadre.tune import prompts
from leadre.tune.answers import TunedSearcher
from leadre.tune.threads import ThreadBuilder


@dataclass(frozen=True)
class TunedModel:
    """The model on its device, with the threads and the prior that it was tuned on. Training may continue on it."""

    backbone: Backbone
    threads: ThreadBuilder
    live: InventoryPrior

    def searcher(self) -> TunedSearcher:
        """Beam search with a copy of the current weights."""
        return TunedSearcher(BeamSearcher(self.backbone), self.threads, self.live)


def load(
    tables: Artifact,
    codebook: Codebook,
    model: Artifact,
    *,
    training: bool,
    moments: Moments | None = None,
    money: PriceExponents | None = None,
) -> TunedModel:
    """Load weights, prompt format and prior; ``codebook`` from `tuned_ids`, ``training`` as in `load_prior`.

    ``moments`` are those to answer, by default the requests of ``tables``; ``money`` replaces the model's exponents.
    """
    if moments is None:
        moments = moment.of_requests(histories.load(tables))
    logs = moments.logs
    live = load_prior(logs, codebook, model, training=training, money=money, now_us=moments.now_us)
    backbone = backbones.load(model.path, live.codes_OL).to(backbones.pick_device())
    tuning = settings(model)
    backbones.freeze(backbone, body=tuning.get("freeze_body", False), codes=tuning.get("zero_codes", False))
    tokenizer = pretrained.tokenizer(model.path / "tokenizer")
    prompter = prompts.PromptWriter(logs, tokenizer, backbone.layout, prompts.load_blocks(model.path))
    threads = ThreadBuilder(prompter, moments, tuning.get("burn_in", 0.0), live.from_us, tuning.get("train_visits", 0))
    return TunedModel(backbone, threads, live)


def settings(model: Artifact) -> Mapping[str, Any]:
    """The config of the fine-tuning: the artifact's own, or that of its parent if preference tuning followed."""
    config = model.meta["config"]
    tuning: Mapping[str, Any] = config.get("sft", config)
    return tuning


def load_prior(
    logs: Logs,
    ids: Codebook,
    model: Artifact,
    *,
    training: bool,
    money: PriceExponents | None = None,
    now_us: int | None = None,
) -> InventoryPrior:
    """The prior that the model was tuned under.

    ``training``: the prior must also weigh training requests, which needs the fits of `affinity.held_out`. ``now_us``:
    the time of all moments, if they have the same.
    """
    config = settings(model)
    if money is None:
        own = model.meta["config"]
        money = PriceExponents(own.get("money", 0.0), own.get("money_prior", 0.0))  # fine-tuning has none
    if config.get("learnt_prior", False):
        return InventoryPrior(
            logs, ids, learnt=counts_networks.load(model.path / counts_networks.FOLDER), money=money, now_us=now_us
        )
    if not (config["prior"] and config["affinity"]):
        return InventoryPrior(logs, ids, prior=config["prior"], money=money, now_us=now_us)
    held_out = affinities.held_out(logs, ids, config["seed"]) if training else []
    full = affinities.load(model.path, len(ids.object_ids))
    return InventoryPrior(logs, ids, affinity=full, held_out=held_out, money=money, now_us=now_us)


def tuned_ids(codebook: Codebook, model: Artifact) -> Codebook:
    """The codebook that the model learnt: ``codebook``, or its IDs shuffled among the objects in a control run."""
    config = settings(model)
    return codebooks.shuffled(codebook, config["seed"]) if config["shuffle_ids"] else codebook


def check_ids(model: Artifact, codebook: Artifact) -> None:
    """Raises ArtifactError unless the model learnt the IDs of ``codebook`` or of the codebook that it extends."""
    known = {codebook.hash, *codebook.meta["parents"].values()}
    if model.meta["parents"].get("semid") not in known:
        raise ArtifactError(
            f"{model.path}: was tuned on other semantic IDs than those in {codebook.path}; run `leadre tune` again"
        )
