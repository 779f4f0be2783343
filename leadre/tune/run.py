"""Histories + semantic IDs -> a language model that generates the semantic IDs of ads for a user.

Writes the artifact ``work/<run>/tune-sft``: the backbone (model.safetensors, backbone.json, body/, tokenizer/), the
affinities of its prior (affinity.safetensors), the form of its prompts (prompt.json), loss.csv, valid.csv and loss.png;
with alignment tasks also tasks.csv (examples and losses by task), tasks.png and alignment.json (how well the model
knows the meaning of IDs). A killed run resumes from ``work/<run>/.tune-sft.checkpoint``.
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
from leadre.errors import InputError
from leadre.tune.options import PromptBlocks, TrainingSchedule

if TYPE_CHECKING:  # torch is imported in run, so that --help stays quick
    from collections.abc import Mapping, Sequence

    from leadre.data.histories import Logs
    from leadre.lm.backbone import Backbone
    from leadre.lm.prior import InventoryPrior
    from leadre.semid.codebook import Codebook
    from leadre.tune.alignment.sampler import AlignmentSampler
    from leadre.tune.answers import Outcomes
    from leadre.tune.checkpoint import TrainingHistory
    from leadre.tune.prompts import PromptWriter
    from leadre.tune.sft import Validate
    from leadre.tune.threads import ThreadBuilder, Window

VALIDATION_BEAM = 20


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    """Options of ``leadre tune``."""

    backbone: str = config.option("smollm2", "smollm2 (packaged), a local Hugging Face folder or a hub name")
    random_backbone: bool = config.option(False, "start the body from random weights (control runs)")
    random_words: bool = config.option(False, "random word embeddings of the same spread (control runs)")
    freeze_body: bool = config.option(False, "train the code rows and the pointer alone (control runs)")
    zero_codes: bool = config.option(
        False, "code rows of zeros, not trained: the prior decides alone if there is no pointer (control runs)"
    )
    layers: int = config.option(4, "keep only this many of the first layers (for CPUs); 0 = all", at_least=0)
    pointer: bool = config.option(True, "a pointer over the objects in the prompt beside the head")
    prior: bool = config.option(True, "start from how often each object was acted on while it was live")
    learnt_prior: bool = config.option(
        False, "prior: the counts network of the channels, fitted on other users; trains on later visits only"
    )
    sequence_prior: bool = config.option(
        False, "the counts network of the learnt prior also reads SASRec, fitted twice: before its visits, and on all"
    )
    affinity: bool = config.option(False, "prior for prospecting: rates among new users x affinity to the history")
    adapter: Literal["full", "lora"] = config.option("full", "train all weights of the body, or LoRA adapters")
    lora_rank: int = config.option(16, "rank of the LoRA adapters", at_least=1)
    shuffle_ids: bool = config.option(False, "permute the semantic IDs among the objects (control runs)")
    burn_in: float = config.option(
        0.0, "share of training time used as history only: at its start all users are new", at_least=0, below=1
    )
    train_visits: int = config.option(
        5_000, "the last training requests of a user that are targets, the others are history only; 0 = all", at_least=0
    )
    short_share: float = config.option(
        0.0, "share of training windows that are short and hold nothing before them", at_least=0, at_most=1
    )
    schedule: TrainingSchedule = config.group(TrainingSchedule())
    new_weight: float = config.option(
        0.5, "weight of new conversions ranked among new ads, beside all conversions", at_least=0
    )
    aux_share: float = config.option(
        0.0, "share of a step's positions for alignment tasks; 0 = none", at_least=0, below=1
    )
    aux_first: int = config.option(0, "steps of the alignment tasks alone before the main task begins", at_least=0)
    aux_rate: float = config.option(
        1.0, "learning rates of these steps, as a multiple of those of the main task", above=0
    )
    aux_hidden: float = config.option(
        0.0, "share of the titles that no alignment task uses, held out for alignment.json", at_least=0, below=1
    )
    task_id_to_text: float = config.option(
        1.0, "weight of the alignment task ID -> title, category, brand; 0 = off", at_least=0
    )
    task_text_to_id: float = config.option(1.0, "weight of: title, category, brand -> ID", at_least=0)
    task_prefix_to_category: float = config.option(
        1.0, "weight of: first codes of an ID -> as many levels of its category path", at_least=0
    )
    task_mixed: float = config.option(1.0, "weight of: history, some of it in words -> ID", at_least=0)
    task_search: float = config.option(1.0, "weight of: category and brand in words -> ID", at_least=0)
    task_content_to_ad: float = config.option(1.0, "weight of: contents outside ads -> ID", at_least=0)
    task_why: float = config.option(1.0, "weight of: history -> category of the next action, then its ID", at_least=0)
    blocks: PromptBlocks = config.group(PromptBlocks())


def run(config: Config) -> None:
    """Write ``work/<run>/tune-sft`` unless it is current. Raises InputError for options that cannot be met."""
    from leadre.lm import pretrained

    _check(config)
    tables = artifact.read(config.folder("data"), artifact.TABLES)
    codebook = artifact.read(config.folder("semid"), artifact.CODEBOOK)
    parents = [tables, codebook]
    effective = config.flat() | pretrained.identity(config.backbone, config.work)
    output = artifact.Output(
        folder=config.folder("tune-sft"),
        kind=artifact.MODEL,
        config=effective,
        seed=config.seed,
        parents=parents,
    )
    if output.skip("tune"):
        return
    from leadre.data import histories
    from leadre.tune import plots

    checkpoint = config.folder(".tune-sft.checkpoint")
    with output.create() as temporary:
        logs = histories.load(tables)
        backbone, prompter, live, source = prepare(config, logs, tables, codebook)
        threads = thread_builder(config, prompter, logs, live.from_us)
        sentences = _sentences(config, threads, live)
        resume_key = artifact.resume_key(effective, parents)
        history = _train(config, backbone, threads, live, sentences, checkpoint, resume_key)
        write(temporary, backbone, live, prompter.blocks, source, history)
        plots.loss_curve(history, temporary / "loss.png")
        if sentences:
            _write_alignment(temporary, backbone, sentences, history, config.seed)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _check(config: Config) -> None:
    """Raise InputError for options that contradict each other, before anything is read."""
    if config.aux_share and not config.blocks.words:
        raise InputError(f"--aux-share {config.aux_share}: alignment tasks need words in prompts; set --words true")
    if config.freeze_body and config.adapter == "lora":
        raise InputError("--freeze-body true --adapter lora: LoRA trains the body; set --adapter full")
    if config.freeze_body and config.zero_codes and not config.pointer:
        raise InputError("--freeze-body true --zero-codes true --pointer false: nothing is left to train")
    if config.learnt_prior and (config.affinity or not config.prior):
        raise InputError(
            "--learnt-prior true takes the place of response rates: it needs --prior true --affinity false"
        )
    if config.sequence_prior and not config.learnt_prior:
        raise InputError("--sequence-prior true: it is an input of the learnt prior; set --learnt-prior true")
    if config.aux_first and not config.aux_share:
        raise InputError(f"--aux-first {config.aux_first}: needs alignment tasks; set --aux-share above 0")


def prepare(
    config: Config, logs: Logs, tables: artifact.Artifact, codebook_artifact: artifact.Artifact
) -> tuple[Backbone, PromptWriter, InventoryPrior, Path]:
    """(backbone with initialised code rows, prompter, prior over live objects, folder of the pretrained model)."""
    import torch

    from leadre.lm import backbone as backbones
    from leadre.lm import pretrained
    from leadre.lm.layout import Layout
    from leadre.lm.pointer import GATE_BESIDE_LEARNT
    from leadre.semid import codebook as codebooks
    from leadre.tune.prompts import PromptWriter

    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    codebook = codebooks.load(codebook_artifact)
    if config.shuffle_ids:
        codebook = codebooks.shuffled(codebook, config.seed)
    live = _live(config, logs, tables, codebook)
    source = pretrained.folder_of(config.backbone, config.work)
    tokenizer = pretrained.tokenizer(source)
    layout = Layout(len(tokenizer), codebook.sizes)
    backbone = backbones.create(source, layout, live.codes_OL, layers=config.layers, pointer=config.pointer)
    if config.random_backbone:
        backbones.randomise(backbone, config.seed)
    if config.random_words:
        backbones.randomise_words(backbone, config.seed)
    prompter = PromptWriter(logs, tokenizer, layout, config.blocks)
    titles = [prompter.plain(" " + title) for title in logs.objects["title"]]
    if not config.zero_codes:
        backbones.init_codes(backbone, codebook.centroids, titles, config.seed, ~logs.hidden_O)
    backbones.freeze(backbone, body=config.freeze_body, codes=config.zero_codes)
    if backbone.pointer is not None:
        backbone.pointer.start_counts(prompter.counts())
        if live.learnt is not None:
            backbone.pointer.start_gate(GATE_BESIDE_LEARNT)
    return backbone.to(backbones.pick_device()), prompter, live, source


def _live(config: Config, logs: Logs, tables: artifact.Artifact, codebook: Codebook) -> InventoryPrior:
    """The prior over live objects that ``config`` selects."""
    from leadre.lm import affinity, counts_fit
    from leadre.lm.prior import InventoryPrior

    if config.learnt_prior:
        fit = counts_fit.current(
            config.folder("channels"),
            logs,
            tables,
            sequence=config.sequence_prior,
            seed=config.seed,
            threads=config.threads,
        )
        return InventoryPrior(logs, codebook, learnt=fit)
    if not (config.prior and config.affinity):
        return InventoryPrior(logs, codebook, prior=config.prior)
    full = affinity.fit(logs, codebook, config.seed)
    held_out = affinity.held_out(logs, codebook, config.seed)
    return InventoryPrior(logs, codebook, affinity=full, held_out=held_out)


def thread_builder(config: Config, prompter: PromptWriter, logs: Logs, from_us: int) -> ThreadBuilder:
    """Threads of the log, answered from ``from_us`` on. Raises InputError if no training request has an outcome."""
    from leadre.data import moment
    from leadre.tune.threads import ThreadBuilder

    moments = moment.of_requests(logs)
    threads = ThreadBuilder(
        prompter, moments, config.burn_in, from_us, config.train_visits, short_share=config.short_share
    )
    if not len(threads.train_R):
        raise InputError(
            "the data artifact has no training requests with an outcome; check the split options of `leadre data`"
        )
    return threads


def _sentences(config: Config, threads: ThreadBuilder, live: InventoryPrior) -> AlignmentSampler | None:
    """The alignment tasks. Raises InputError if none can be drawn, or if they take all positions of a step."""
    if not config.aux_share:
        return None
    from leadre.tune.alignment.objects import hidden_objects
    from leadre.tune.alignment.phrasings import PHRASINGS
    from leadre.tune.alignment.sampler import ROW_POSITIONS, AlignmentSampler

    weights = {task: float(getattr(config, f"task_{task}")) for task in PHRASINGS}
    batch_tokens = config.schedule.batch_tokens
    rows = max(round(config.aux_share * batch_tokens / ROW_POSITIONS), 1)
    hidden = hidden_objects(threads.logs.objects["title"].to_list(), config.aux_hidden, config.seed)
    sentences = AlignmentSampler(threads, live, weights, rows=rows, seed=config.seed, hidden=hidden.tolist())
    if not sentences.weights:
        raise InputError(
            "--aux-share: no alignment task has examples; give one a weight above 0, and the ads titles or categories"
        )
    if sentences.positions >= batch_tokens:
        raise InputError(
            f"--aux-share {config.aux_share}: {sentences.positions} of {batch_tokens} positions a step leave "
            f"none to the main task; set --batch-tokens above {sentences.positions}"
        )
    for task in (task for task, weight in weights.items() if weight and task not in sentences.weights):
        progress.say(f"tune: the alignment task {task} has no examples and is left out")
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
        right = group["category"]
        table = group["lookup_2"]
        progress.say(
            f"tune: category of {group['objects']:,} {name} ads from their IDs, first level {right['1']:.3f} "
            f"(a lookup by two codes {table['1']:.3f}), second {right['2']:.3f} ({table['2']:.3f})"
        )


def _train(
    config: Config,
    backbone: Backbone,
    threads: ThreadBuilder,
    live: InventoryPrior,
    sentences: AlignmentSampler | None,
    checkpoint: Path,
    resume_key: str,
) -> TrainingHistory:
    from leadre.tune import departure, sft
    from leadre.tune.batches import Examples

    examples = Examples(threads, live, backbone.layout, config.new_weight)
    if config.adapter == "lora":
        _add_lora(backbone, config.lora_rank)
    schedule = dataclasses.replace(config.schedule, seed=config.seed)
    validate = validator(schedule, backbone, threads, live)
    history = sft.train(
        backbone,
        examples,
        schedule,
        checkpoint,
        resume_key,
        validate,
        sentences,
        alignment_first=config.aux_first,
        alignment_rate=config.aux_rate,
    )
    if config.adapter == "lora":
        backbone.body = backbone.body.merge_and_unload()
    windows = validation_windows(schedule, threads, with_outcome=True)
    figures = departure.choose(backbone, examples, windows, schedule.batch_tokens)
    if figures:
        progress.say("tune: " + departure.text(figures, backbone.departure))
    return history


def validator(schedule: TrainingSchedule, backbone: Backbone, threads: ThreadBuilder, live: InventoryPrior) -> Validate:
    """A function of no arguments: the outcomes by view of a sample of the validation requests."""
    from leadre.tune.answers import measure

    windows = validation_windows(schedule, threads)

    def validate() -> Mapping[str, Outcomes]:
        return measure(backbone, threads, live, windows, VALIDATION_BEAM)

    return validate


def validation_windows(
    schedule: TrainingSchedule, threads: ThreadBuilder, *, with_outcome: bool = False
) -> list[Window]:
    """The windows of a sample of the validation requests; ``with_outcome``: of those with a positive action."""
    import numpy as np

    from leadre.data import histories

    requests = threads.logs.requests_of(histories.VALID)
    users = np.unique(threads.logs.request_user_R[requests])
    sample = np.random.default_rng(schedule.seed).permutation(users)[: schedule.validate_users]
    requests = requests[np.isin(threads.logs.request_user_R[requests], sample)]
    requests = histories.at_most(threads.logs, requests, schedule.validate_visits, schedule.seed)
    if with_outcome:
        requests = requests[np.diff(threads.logs.relevant_offsets)[requests] > 0]
    return threads.serving(requests)


def _add_lora(backbone: Backbone, rank: int) -> None:
    from peft import LoraConfig, get_peft_model

    backbone.body = get_peft_model(backbone.body, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def write(
    folder: Path, backbone: Backbone, live: InventoryPrior, blocks: PromptBlocks, source: Path, history: TrainingHistory
) -> None:
    """Write all that `leadre.tune.model.load` reads (with the tokenizer of ``source``), loss.csv and valid.csv."""
    from leadre.lm import backbone as backbones
    from leadre.lm import counts_networks, pretrained
    from leadre.tune import prompts

    backbones.save(backbone, folder)
    pretrained.tokenizer(source).save_pretrained(folder / "tokenizer")
    prompts.save_blocks(blocks, folder)
    if live.affinity is not None:
        live.affinity.save(folder)
    if live.learnt is not None:
        live.learnt.save(folder / counts_networks.FOLDER)
    _csv(folder / "loss.csv", ("step", "loss", "lr", "tokens"), history.loss)
    write_figures(folder / "valid.csv", history.valid)


def write_figures(path: Path, figures: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Write the figures of each step as CSV, one column per figure."""
    names = list(figures[0][1]) if figures else []
    _csv(path, ("step", *names), [(step, *row.values()) for step, row in figures])


def _csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[int | float | str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
