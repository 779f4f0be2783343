"""Bodies of Hugging Face causal LMs: their words, their layers, their positions, and a body made again from its config.

Letters: V words, D width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leadre.errors import InputError


@dataclass(frozen=True)
class Words:
    """The frozen rows of the words [V, D], the factor that the model applies to them, its head if it has one apart."""

    rows_VD: Tensor
    scale: float = 1.0
    head_VD: Tensor | None = None


@torch.no_grad()
def read_words(model: Any, words: int) -> Words:
    """Embeddings and head of the first ``words`` tokens; the embeddings of ``model`` are rounded to bfloat16 in place.

    InputError if the model has fewer.
    """
    embeddings = model.get_input_embeddings()
    weight_VD = embeddings.weight
    if len(weight_VD) < words:
        raise InputError(f"the tokenizer has {words} tokens, the model embeddings for {len(weight_VD)}")
    weight_VD.copy_(weight_VD.bfloat16())
    some = torch.arange(min(words, 64), device=weight_VD.device)
    used = weight_VD[some].abs() > 0
    scale = float((embeddings(some)[used] / weight_VD[some][used]).mean())  # Gemma multiplies its embeddings
    head = model.get_output_embeddings()
    is_tied = head is None or torch.equal(head.weight, weight_VD)
    return Words(
        rows_VD=weight_VD[:words].bfloat16(),
        scale=1.0 if abs(scale - 1) < 1e-6 else scale,
        head_VD=None if is_tied else head.weight[:words].bfloat16(),
    )


def cut_depth(body: Any, layers: Sequence[int] | int) -> None:
    """Keep only some layers of a decoder, in place; fewer layers make training on CPUs feasible.

    The lists of the config that have an entry for each layer are cut alike.
    """
    count = int(getattr(body.config, "num_hidden_layers", 0))  # a model of several parts has none
    stacks = [
        name for name, part in body.named_children() if isinstance(part, nn.ModuleList) and 0 < len(part) == count
    ]
    if len(stacks) != 1:
        if layers == 0:
            return
        raise InputError(f"--layers {layers}: {type(body).__name__} has no list of layers to cut; use --layers 0")
    stack = getattr(body, stacks[0])
    keep = list(layers) if not isinstance(layers, int) else list(range(layers or count))
    if not keep or max(keep) >= count or min(keep) < 0:
        raise InputError(f"--layers {layers}: the backbone has layers 0 to {count - 1}")
    setattr(body, stacks[0], nn.ModuleList(stack[index] for index in keep))
    for index, layer in enumerate(getattr(body, stacks[0])):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # index into the KV cache
    for name, entries in body.config.to_dict().items():
        if "layer" in name and isinstance(entries, list) and len(entries) == count:
            setattr(body.config, name, [entries[index] for index in keep])
    body.config.num_hidden_layers = len(keep)


def empty(folder: Path) -> Any:
    """A body of the config in ``folder``, with weights to be loaded and without word embeddings."""
    from transformers import AutoConfig, AutoModel

    body = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    body.set_input_embeddings(nn.Identity())
    return body


def reloaded(body: Any) -> Any:
    """The body as `load` will make it from the config that `save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        body.config.save_pretrained(folder)
        again = empty(Path(folder))
    again.load_state_dict(body.state_dict())
    return again.eval()


def max_positions(config: Any) -> int | None:
    """The number of positions for which the model has embeddings, or keeps its rotary frequencies; None = any."""
    limits = [getattr(config, "max_position_embeddings", None)]
    if "longrope" in str(getattr(config, "rope_parameters", None)):  # other frequencies beyond the original length
        limits.append(getattr(config, "original_max_position_embeddings", None))
        limits.append(config.rope_parameters.get("original_max_position_embeddings"))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
