"""Fixtures for several stages: a tiny text encoder, a tiny language model, a small market with IDs and prompts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

# Threads of OpenMP wait for each other by spinning. On a busy machine two of them take ten times the processor time of
# one, and the models of the tests are too small for a second. torch and child processes read this when they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SIGNS = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "|", ">", "red", "tea", *SIGNS, *(f"##{s}" for s in SIGNS)]
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN_BUT_ADDED = "<tool>"  # some tokenizers add tokens without marking them as special


def pytest_collection_modifyitems(config, items):
    """Deselect soak tests, which take minutes, unless -m soak selects them."""
    if "soak" in config.option.markexpr:
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=soak)
    items[:] = [item for item in items if item not in soak]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Fail a test that lowers this process's priority: all later ones would starve beside the bidders of the others."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    result = yield
    assert os.getpriority(os.PRIO_PROCESS, 0) == before, "the test has lowered the priority of its process"
    return result


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A sentence-transformers folder: random weights, real tokenizer."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=96,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": True}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A causal LM folder: 2 layers of width 32 with random weights, and a byte-level tokenizer trained on the spot."""
    import tokenizers
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("llama")
    base = tokenizers.Tokenizer(tokenizers.models.BPE())
    base.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(CONTROL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [
        "\nMonday night: ads also Tuesday morning: Wednesday afternoon: Thursday evening: once twice several often"
    ]
    base.train_from_iterator(corpus * 3, trainer)
    base.add_tokens([PLAIN_BUT_ADDED])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=base, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Small:
    """A small market with semantic IDs, and the tokenizer of the tiny language model in ``folder``."""

    logs: Any
    codebook: Any
    live: Any
    tokenizer: Any
    layout: Any
    folder: Path

    @cached_property
    def moments(self):
        """One Moment per request of the log."""
        from leadre.data.moment import of_requests

        return of_requests(self.logs)

    def prompter(self, logs=None, **blocks):
        from leadre.tune.prompts import PromptBlocks, PromptWriter

        settings = {"long_items": 6, "described": 1, "long_tokens": 60, "short_tokens": 60} | blocks
        return PromptWriter(logs or self.logs, self.tokenizer, self.layout, PromptBlocks(**settings))

    def threads(self, logs=None, **blocks):
        from leadre.data.moment import of_requests
        from leadre.tune.threads import ThreadBuilder

        return ThreadBuilder(self.prompter(logs, **blocks), of_requests(logs or self.logs))

    def examples(self, new_weight=0.5, **blocks):
        from leadre.tune.batches import Examples

        return Examples(self.threads(**blocks), self.live, self.layout, new_weight)

    def backbone(self, seed=0, pointer=True, double=False):
        """A new model whose weights are so large that its scores differ between inputs."""
        from leadre.lm import backbone as backbones

        backbone = backbones.create(self.folder, self.layout, self.live.codes_OL, layers=0, pointer=pointer)
        draw_large_weights(backbone, seed)
        return backbone.double() if double else backbone


def draw_large_weights(backbone, seed):
    """Set random weights so large that every position changes the scores."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    scale = {"codes_SD": 3.0, "bias_S": 1.0}
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale.get(name, 0.3))
        backbone.words_VD.copy_(torch.randn(backbone.words_VD.shape, generator=generator))
    backbone.eval()


@pytest.fixture(scope="session")
def small(tiny_llama):
    from leadre.data import histories, world
    from leadre.lm import pretrained
    from leadre.lm.layout import Layout
    from leadre.lm.prior import InventoryPrior
    from leadre.semid import codebook as codebooks
    from leadre.semid.quantiser import Quantiser

    tables = world.read(seed=3, users=24, ads=40, contents=12)
    logs = histories.of_tables(tables, "conversion")
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(5, 8)).astype(np.float32), 0.5 * rng.normal(size=(4, 8)).astype(np.float32)
    vectors = rng.normal(size=(len(logs.objects), 8)).astype(np.float32)
    ids = logs.objects["object_id"].to_list()
    codebook = codebooks.fit(ids, vectors, Quantiser(centroids=centroids), 8, 8)
    tokenizer = pretrained.tokenizer(tiny_llama)
    return Small(
        logs=logs,
        codebook=codebook,
        live=InventoryPrior(logs, codebook),
        tokenizer=tokenizer,
        layout=Layout(len(tokenizer), codebook.sizes),
        folder=tiny_llama,
    )


@pytest.fixture(scope="module")
def exact():
    """Compute in float64: no autocast, and norms without a cast to float32."""
    import contextlib

    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from leadre.lm import backbone as backbones

    def norm(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "precision", lambda device: contextlib.nullcontext())
        patch.setattr(LlamaRMSNorm, "forward", norm)
        yield


def make_logs(events, requests=(), *, objects=8, live=None, users=None, titles=None):
    """Logs of ``events`` (user, at_us, domain, object, value_nanos) and ``requests`` (user, at_us, split, objects).

    ``objects`` of a request are the relevant ones. Ad ``a`` is the only ad of object ``a``. ``live`` are the objects of
    every inventory, by default all.
    """
    from leadre.data.histories import SPLITS, Logs
    from leadre.data.inventories import Inventories
    from leadre.data.tables import TIME, always_live

    events = sorted(events, key=lambda event: event[:2])
    requests = sorted(requests, key=lambda request: request[:2])
    count = 1 + max([user for user, *_ in [*events, *requests]], default=0)
    user, at_us, domain, thing, value = (np.array(column, np.int64) for column in zip(*events, strict=True))
    titles = titles or [f"thing {o}" for o in range(objects)]
    relevant = [sorted(request[3]) for request in requests]
    live = list(range(objects) if live is None else live)
    names = pl.Series([f"a{o:06}" for o in range(objects)], dtype=pl.String)
    everywhere = pl.lit("all").alias("inventory_id")

    def offsets(lengths):
        return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)

    return Logs(
        ads=pl.DataFrame({"ad_id": [f"a{o}" for o in range(objects)], "title": titles}),
        objects=pl.DataFrame({"object_id": [f"o{o}" for o in range(objects)], "title": titles, "hidden": False}),
        users=users if users is not None else pl.DataFrame({"user_id": [f"u{u}" for u in range(count)]}),
        ad_object_A=np.arange(objects, dtype=np.int32),
        event_offsets=offsets(np.bincount(user, minlength=count)),
        at_us_E=at_us,
        object_E=thing.astype(np.int32),
        ad_E=np.where(domain == 1, thing, -1).astype(np.int32),
        domain_E=domain.astype(np.int8),
        value_nanos_E=value,
        request_E=np.full(len(events), -1, np.int32),
        request_user_R=np.array([request[0] for request in requests], np.int32),
        request_at_us_R=np.array([request[1] for request in requests], np.int64),
        request_placement_R=np.zeros(len(requests), np.int32),
        placements=["top"],
        request_split_R=np.array([SPLITS.index(request[2]) for request in requests], np.int8),
        relevant_offsets=offsets([len(things) for things in relevant]),
        relevant_ads=np.array([o for things in relevant for o in things], np.int32),
        relevant_value_nanos=np.array([1 for things in relevant for o in things], np.int64),
        inventories=Inventories.of(
            pl.DataFrame({"at": [request[1] for request in requests]}, {"at": TIME}).with_columns(everywhere),
            always_live(pl.DataFrame({"ad_id": names.gather(live)}).with_columns(everywhere)),
            names,
        ),
    )


@pytest.fixture
def hand():
    return make_logs


@pytest.fixture(scope="session")
def work(tiny_encoder, tiny_llama, tmp_path_factory):
    """A work folder with the run `served`: the synthetic market, its IDs and a model tuned for two steps."""

    from leadre.__main__ import main

    work = tmp_path_factory.mktemp("work")
    stages = {
        "data": "--source world --world-users 60 --world-ads 60 --world-contents 12",
        "semid": f"--encoder {tiny_encoder} --levels 8,6 --collisions 24 --collaborative 2 --collaborative-dim 8",
        "tune": f"--backbone {tiny_llama} --layers 0 --short-tokens 150 --long-tokens 60 --described 0 --max-steps 2"
        " --batch-tokens 800",
    }
    for verb, flags in stages.items():
        shared = ["--work", str(work), "--run", "served", "--threads", "1"]
        assert main([verb, *shared, *flags.split()]) == 0, verb
    return work
