"""Histories + semantic IDs -> a language model that answers a user's intents with the semantic ID of an ad.

Writes the artifact ``work/<run>/tune-sft``: the backbone (model.safetensors, backbone.json, body/, tokenizer/), the
affinities of its prior (affinity.safetensors), the form of its prompts (prompt.json), loss.csv, valid.csv and loss.png;
with alignment tasks tasks.csv (what was drawn of each), tasks.png and alignment.json (what the IDs mean to the model).
A killed run resumes from ``work/<run>/.tune-sft.checkpoint``.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from leadre import artifact, config, progress
from leadre.errors import ArtifactError, InputError

if TYPE_CHECKING:  # torch loads in run, so that --help stays quick
    from collections.abc import Mapping, Sequence

    from leadre.data.histories import Logs
    from leadre.lm.backbone import Backbone
    from leadre.lm.prior import InventoryPrior
    from leadre.semid.codebook import Codebook
    from leadre.tune.alignment.sampler import AlignmentSampler
    from leadre.tune.checkpoint import TrainingHistory
    from leadre.tune.prompts import PromptBlocks, PromptWriter
    from leadre.tune.sft import Validate
    from leadre.tune.threads import ThreadBuilder

VALIDATION_USERS = 200
VALIDATION_BEAM = 20


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre tune``."""

    backbone: str = config.option("smollm2", "smollm2 (packaged), a local Hugging Face folder or a hub name")
    random_backbone: bool = config.option(False, "start the body from random weights (control runs)")
    layers: int = config.option(4, "keep only the first so many layers (for CPUs); 0 keeps all")
    pointer: bool = config.option(True, "a pointer over the objects in the prompt beside the head")
    prior: bool = config.option(True, "start from how often each object was acted on when it was live")
    affinity: bool = config.option(False, "prior for prospecting: rates among new users x what goes with a history")
    adapter: Literal["full", "lora"] = config.option("full", "train all weights of the body, or LoRA adapters")
    lora_rank: int = config.option(16, "rank of the LoRA adapters")
    shuffle_ids: bool = config.option(False, "permute the semantic IDs among the objects (control runs)")
    burn_in: float = config.option(0.0, "share of training time that is read as history alone: there all is new")
    epochs: int = config.option(3, "passes over the training visits")
    max_steps: int = config.option(0, "stop after so many steps, 0 = all epochs; the learning rate is fitted to it")
    batch_tokens: int = config.option(4096, "positions in a step, padding included")
    learning_rate: float = config.option(1e-3, "peak rate of the body")
    codes_learning_rate: float = config.option(3e-3, "peak rate of the semantic-ID rows")
    weight_decay: float = config.option(0.05, "decoupled weight decay")
    new_weight: float = config.option(0.5, "weight of new conversions ranked among new ads, beside all conversions")
    aux_share: float = config.option(0.0, "share of a step's positions for alignment tasks; 0 = none")
    aux_first: int = config.option(0, "steps of the alignment tasks alone before the main task begins")
    aux_hidden: float = config.option(
        0.0, "share of the titles that no alignment task speaks of, to be asked about later"
    )
    task_id_to_text: float = config.option(1.0, "weight of an alignment task: ID -> title, category, brand; 0 = off")
    task_text_to_id: float = config.option(1.0, "and of: title, category, brand -> ID")
    task_prefix_to_category: float = config.option(1.0, "first codes of an ID -> as many levels of its category path")
    task_mixed: float = config.option(1.0, "history, some of it in words -> ID")
    task_search: float = config.option(1.0, "category and brand in words -> ID")
    task_content_to_ad: float = config.option(1.0, "contents met elsewhere -> ID")
    task_why: float = config.option(1.0, "history -> category of what was acted on next, then its ID")
    words: bool = config.option(True, "false writes prompts of IDs alone (control runs)")
    profile: bool = config.option(True, "prompt block: the user's profile")
    long_content: bool = config.option(True, "prompt block: long-term interests outside ads")
    long_ad: bool = config.option(True, "prompt block: long-term interests from ads")
    short_content: bool = config.option(True, "prompt block: the last visits outside ads")
    short_ad: bool = config.option(True, "prompt block: the last visits from ads")
    context: bool = config.option(True, "prompt block: weekday and time of the request")
    placement: bool = config.option(True, "and where it asks, if there are several placements")
    long_items: int = config.option(48, "most long-term interests of a domain")
    described: int = config.option(4, "how many of them are told in words")
    long_tokens: int = config.option(160, "positions of the long-term interests of a domain")
    short_tokens: int = config.option(512, "step of the short-term window, which holds one to two steps")
    validate_every: int = config.option(200, "steps between validations on a seeded sample of users")
    checkpoint_s: float = config.option(120.0, "seconds between checkpoints")


def run(config: Config) -> None:
    """Write ``work/<run>/tune-sft``, or say that it is current. InputError for options that cannot be met."""
    _check(config)
    folder = config.folder("tune-sft")
    tables = artifact.read(config.folder("data"), artifact.TABLES)
    codebook = artifact.read(config.folder("semid"), artifact.CODEBOOK)
    effective, parents = dataclasses.asdict(config), [tables, codebook]
    output = artifact.Output(folder=folder, kind=artifact.MODEL, config=effective, seed=config.seed, parents=parents)
    if output.skip("tune"):
        return
    from leadre.data import histories
    from leadre.tune import plots

    checkpoint = config.folder(".tune-sft.checkpoint")
    with output.create() as temporary:
        logs = histories.load(tables)
        backbone, prompter, live, source = prepare(config, logs, codebook)
        threads = _threads(config, prompter, logs)
        sentences = _sentences(config, threads, live)
        history = _train(config, backbone, threads, live, sentences, checkpoint, parents)
        write(temporary, backbone, live, prompter.blocks, source, history)
        plots.loss_curve(history, temporary / "loss.png")
        if sentences:
            _write_alignment(temporary, backbone, sentences, history, config.seed)
    shutil.rmtree(checkpoint, ignore_errors=True)


def latest(given: config.Common) -> Path:
    """Folder of the run's last model, which answers users: `tune-dpo`, unless `tune-sft` was made anew since."""
    tuned, valued = given.folder("tune-sft"), given.folder("tune-dpo")
    if not (tuned.exists() and valued.exists()):
        return valued if valued.exists() else tuned
    try:
        before = artifact.glance(tuned, artifact.MODEL).hash
        if artifact.glance(valued, artifact.MODEL).meta["parents"].get(tuned.name) == before:
            return valued
    except ArtifactError:
        return valued  # whoever reads the two is told what is wrong with them
    progress.say(f"{valued} was learnt from another model than {tuned}, which answers; run `leadre tune --stage dpo`")
    return tuned


def _check(config: Config) -> None:
    """Raise InputError for a count below what a run needs, before anything is read."""
    for name in ("epochs", "batch_tokens", "validate_every", "long_items", "short_tokens", "lora_rank"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: wants 1 or more")
    if not 0 <= config.burn_in < 1:
        raise InputError(f"--burn-in {config.burn_in}: wants a share from 0 to below 1")
    for name in ("aux_share", "aux_hidden"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: wants a share from 0 to below 1")
    for name in (field.name for field in dataclasses.fields(config) if field.name.startswith("task_")):
        if getattr(config, name) < 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: wants 0 (off) or more")
    if config.aux_share and not config.words:
        raise InputError(f"--aux-share {config.aux_share}: alignment tasks are about words; leave --words true")
    if config.max_steps < 0:
        raise InputError(f"--max-steps {config.max_steps}: wants 0 (all epochs) or more")
    if config.aux_first < 0 or (config.aux_first and not config.aux_share):
        raise InputError(f"--aux-first {config.aux_first}: wants 0 or more, and --aux-share above 0 beside it")


def prepare(
    config: Config, logs: Logs, codebook_artifact: artifact.Artifact
) -> tuple[Backbone, PromptWriter, InventoryPrior, Path]:
    """(backbone with initialised code rows, prompter, live sets, folder of the pretrained model)."""
    import torch

    from leadre.lm import backbone as backbones
    from leadre.lm import pretrained
    from leadre.lm.layout import Layout
    from leadre.semid import codebook as codebooks
    from leadre.tune.prompts import PromptWriter

    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    codebook = codebooks.load(codebook_artifact)
    if config.shuffle_ids:
        codebook = codebooks.shuffled(codebook, config.seed)
    live = _live(config, logs, codebook)
    source = pretrained.folder_of(config.backbone, config.work)
    tokenizer = pretrained.tokenizer(source)
    layout = Layout(len(tokenizer), codebook.sizes)
    backbone = backbones.create(source, layout, live.codes_OL, layers=config.layers, pointer=config.pointer)
    if config.random_backbone:
        backbones.randomise(backbone, config.seed)
    prompter = PromptWriter(logs, tokenizer, layout, blocks_of(config))
    titles = [prompter.plain(" " + title) for title in logs.objects["title"]]
    backbones.init_codes(backbone, codebook.centroids, titles, config.seed, ~logs.hidden_O)
    if backbone.pointer is not None:
        backbone.pointer.start_counts(prompter.counts())
    return backbone.to(backbones.pick_device()), prompter, live, source


def _live(config: Config, logs: Logs, codebook: Codebook) -> InventoryPrior:
    """Live sets under the prior that ``config`` asks for."""
    from leadre.lm import affinity
    from leadre.lm.prior import InventoryPrior

    if not (config.prior and config.affinity):
        return InventoryPrior(logs, codebook, prior=config.prior)
    full, others = affinity.fit(logs, codebook, config.seed), affinity.held_out(logs, codebook, config.seed)
    return InventoryPrior(logs, codebook, affinity=full, held_out=others)


def blocks_of(config: Config) -> PromptBlocks:
    """The form of the prompts that ``config`` asks for."""
    from leadre.tune.prompts import PromptBlocks

    return PromptBlocks(**{field.name: getattr(config, field.name) for field in dataclasses.fields(PromptBlocks)})


def _threads(config: Config, prompter: PromptWriter, logs: Logs) -> ThreadBuilder:
    """Threads of the log. InputError where no request teaches anything."""
    from leadre.data import moment
    from leadre.tune.threads import ThreadBuilder

    threads = ThreadBuilder(prompter, moment.of_requests(logs), config.burn_in)
    if not len(threads.train_R):
        raise InputError(
            "the data artifact has no training requests with an outcome; check the split options of `leadre data`"
        )
    return threads


def _sentences(config: Config, threads: ThreadBuilder, live: InventoryPrior) -> AlignmentSampler | None:
    """The alignment tasks that ``config`` asks for. InputError where none can be drawn, or all positions are theirs."""
    if not config.aux_share:
        return None
    from leadre.tune.alignment.objects import hidden_objects
    from leadre.tune.alignment.phrasings import PHRASINGS
    from leadre.tune.alignment.sampler import ROW_POSITIONS, AlignmentSampler

    weights = {task: float(getattr(config, f"task_{task}")) for task in PHRASINGS}
    rows = max(round(config.aux_share * config.batch_tokens / ROW_POSITIONS), 1)
    hidden = hidden_objects(threads.logs.objects["title"].to_list(), config.aux_hidden, config.seed)
    sentences = AlignmentSampler(threads, live, weights, rows=rows, seed=config.seed, hidden=hidden.tolist())
    if not sentences.weights:
        raise InputError(
            "--aux-share: no alignment task can be drawn; give one a weight, and the ads titles or categories"
        )
    if sentences.positions >= config.batch_tokens:
        raise InputError(
            f"--aux-share {config.aux_share}: {sentences.positions} of {config.batch_tokens} positions a step leave "
            f"nothing to the main task; give --batch-tokens more than {sentences.positions}"
        )
    for task in (task for task, weight in weights.items() if weight and task not in sentences.weights):
        progress.say(f"tune: the alignment task {task} has nothing to be drawn from and is left out")
    return sentences


def _write_alignment(
    folder: Path, backbone: Backbone, sentences: AlignmentSampler, history: TrainingHistory, seed: int
) -> None:
    """Write tasks.csv, tasks.png and alignment.json."""
    from leadre.tune import plots
    from leadre.tune.alignment import measure as alignment
    from leadre.tune.alignment import report

    header = ("task", "examples", "positions", "first_loss", "last_loss")
    _csv(folder / "tasks.csv", header, report.summary(history.tasks))
    plots.task_losses(history.tasks, folder / "tasks.png")
    figures = alignment.measure(backbone, sentences, seed)
    (folder / "alignment.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, group in figures.items():
        progress.say(
            f"tune: category of {group['objects']:,} {name} ads: {group['category']['full']:.3f} "
            f"(majority {group['majority']['full']:.3f})"
        )


def _train(
    config: Config,
    backbone: Backbone,
    threads: ThreadBuilder,
    live: InventoryPrior,
    sentences: AlignmentSampler | None,
    checkpoint: Path,
    parents: list[artifact.Artifact],
) -> TrainingHistory:
    from leadre.tune import sft
    from leadre.tune.batches import Examples

    examples = Examples(threads, live, backbone.layout, config.new_weight)
    if config.adapter == "lora":
        _add_lora(backbone, config.lora_rank)
    names = [field.name for field in dataclasses.fields(sft.TrainingSchedule)]
    schedule = sft.TrainingSchedule(**{name: getattr(config, name) for name in names})
    key = artifact.resume_key(dataclasses.asdict(config), parents)
    validate = validator(config.seed, backbone, threads, live)
    history = sft.train(backbone, examples, schedule, checkpoint, key, validate, sentences, config.aux_first)
    if config.adapter == "lora":
        backbone.body = backbone.body.merge_and_unload()
    return history


def validator(seed: int, backbone: Backbone, threads: ThreadBuilder, live: InventoryPrior) -> Validate:
    """Recall@10 in both views over a sample of users of the validation weeks, drawn by ``seed``."""
    import numpy as np

    from leadre.data.histories import VALID
    from leadre.tune.answers import recall

    requests = threads.logs.requests_of(VALID)
    users = np.unique(threads.logs.request_user_R[requests])
    chosen = np.random.default_rng(seed).permutation(users)[:VALIDATION_USERS]
    windows = threads.serving(requests[np.isin(threads.logs.request_user_R[requests], chosen)])
    return lambda: recall(backbone, threads, live, windows, VALIDATION_BEAM)


def _add_lora(backbone: Backbone, rank: int) -> None:
    from peft import LoraConfig, get_peft_model

    backbone.body = get_peft_model(backbone.body, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def write(
    folder: Path, backbone: Backbone, live: InventoryPrior, blocks: PromptBlocks, source: Path, history: TrainingHistory
) -> None:
    """Write all that `saved.load` reads (the tokenizer is that of ``source``), loss.csv and valid.csv."""
    from leadre.lm import backbone as backbones
    from leadre.lm import pretrained
    from leadre.tune import prompts

    backbones.save(backbone, folder)
    pretrained.tokenizer(source).save_pretrained(folder / "tokenizer")
    prompts.save_blocks(blocks, folder)
    if live.affinity is not None:
        live.affinity.save(folder)
    _csv(folder / "loss.csv", ("step", "loss", "lr", "tokens"), history.loss)
    write_figures(folder / "valid.csv", history.valid)


def write_figures(path: Path, figures: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Write figures by step as CSV, a column each."""
    names = list(figures[0][1]) if figures else []
    _csv(path, ("step", *names), [(step, *row.values()) for step, row in figures])


def _csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[int | float | str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
