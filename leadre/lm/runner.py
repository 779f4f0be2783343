"""Forward pass of the body for generation: packed rows of many requests, with attention supplied by the caller.

Training runs the Hugging Face model itself. Generation needs no gradients and no masks over padding, but it needs the
rows of all requests in one matrix and keys and values in the caller's own cache. So a runner maps rows to hidden
states, and calls its caller back at each layer for the attention over that cache.

`PackedRunner` implements the Llama layer with weights stored once in the layout that the processor multiplies fastest;
`EagerRunner` drives any other Hugging Face body. Both compute the same function.

Letters: N rows, D width, H heads, G key-value heads, E width of a head.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from leadre.errors import InputError
from leadre.lm.attention import PLAIN, ScoreRule


class Attend(Protocol):
    """Attention of one layer over the caller's cache: stores keys and values, returns mixed values of the queries."""

    def __call__(
        self, layer: int, query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor, rule: ScoreRule = PLAIN
    ) -> Tensor:
        """Mixed values [N, H, E], of scores scaled by E ** -0.5."""
        ...


class BodyRunner(Protocol):
    """Maps rows [N, D] at ``positions_N`` to hidden states [N, D] after the last norm."""

    layers: int
    heads: tuple[int, int, int]  # (H, G, E)
    dtype: torch.dtype  # of keys and values

    def __call__(self, rows_ND: Tensor, positions_N: Tensor, attend: Attend) -> Tensor: ...


def make_runner(body: Any, dtype: torch.dtype) -> BodyRunner:
    """The fastest runner for ``body``, computing in ``dtype``. It copies the weights: make it after training."""
    config = body.config
    is_packable = config.model_type == "llama" and config.hidden_act in ("silu", "swish")
    return PackedRunner(body, dtype) if is_packable else EagerRunner(body, dtype)


class EagerRunner:
    """Any Hugging Face body, through its own forward pass."""

    def __init__(self, body: Any, dtype: torch.dtype) -> None:
        self.body = body
        self.layers = body.config.num_hidden_layers
        self.heads = _heads(body.config)
        self.dtype = dtype

    def __call__(self, rows_ND: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        # with a mask given, transformers builds none
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows_ND.device)
        with torch.autocast(rows_ND.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            hidden: Tensor = self.body(
                inputs_embeds=rows_ND[None],
                position_ids=positions_N[None],
                attention_mask=no_mask,
                use_cache=False,
                attend=attend,
            ).last_hidden_state
        return hidden[0].to(rows_ND.dtype)


class PackedRunner:
    """The Llama layer (RMS norm, rotary positions, gated MLP), with fused projections."""

    def __init__(self, body: Any, dtype: torch.dtype) -> None:
        self.rotary = body.rotary_emb
        self.layers = len(body.layers)
        self.heads = _heads(body.config)
        self.dtype = dtype
        self.norm = body.norm.weight.detach()
        self.eps = float(body.config.rms_norm_eps)
        self.packed_layers = [_PackedLayer(layer, dtype) for layer in body.layers]

    def __call__(self, rows_ND: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        # the residual stream keeps the type of the rows (float32), as in training; products are computed in ``dtype``
        count = len(rows_ND)
        (H, G, E) = self.heads
        cos, sin = (part[0, :, None].to(self.dtype) for part in self.rotary(rows_ND, positions_N[None]))
        sin = torch.cat([-sin[..., : E // 2], sin[..., E // 2 :]], -1)  # negates the rotated half once for all layers
        stream = rows_ND
        for index, layer in enumerate(self.packed_layers):
            qkv = layer.qkv(self._norm(stream, layer.attention_norm)).view(count, H + 2 * G, E)
            rotated = qkv[:, : H + G]
            rotated = rotated * cos + rotated.roll(E // 2, -1) * sin
            mixed = attend(index, rotated[:, :H], rotated[:, H:], qkv[:, H + G :])
            stream = stream + layer.out(mixed.reshape(count, H * E))
            rows = self._norm(stream, layer.mlp_norm)
            stream = stream + layer.down(layer.up.multiplied(layer.gate.silu(rows), rows))
        return F.rms_norm(stream, stream.shape[-1:], self.norm.to(stream.dtype), self.eps)

    def _norm(self, stream: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(stream, stream.shape[-1:], weight.to(stream.dtype), self.eps).to(self.dtype)


class _PackedLayer:
    """Weights of one layer."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attn = layer.self_attn
        mlp = layer.mlp
        self.attention_norm = layer.input_layernorm.weight.detach()
        self.mlp_norm = layer.post_attention_layernorm.weight.detach()
        self.qkv = _FusedLinear([attn.q_proj, attn.k_proj, attn.v_proj], dtype)
        self.out = _FusedLinear([attn.o_proj], dtype)
        # separate products, as each fuses its own pointwise operation: one pass less over the wide rows
        self.gate = _FusedLinear([mlp.gate_proj], dtype)
        self.up = _FusedLinear([mlp.up_proj], dtype)
        self.down = _FusedLinear([mlp.down_proj], dtype)


class _FusedLinear:
    """Several linear maps of one input as one. bfloat16 weights on CPUs are stored in oneDNN's blocked layout.

    With the few rows of a beam search, reordering them at every call takes as long as the product itself.
    """

    def __init__(self, parts: list[Any], dtype: torch.dtype) -> None:
        self.weight = torch.cat([_weight(part) for part in parts]).to(dtype)
        has_bias = parts[0].bias is not None
        self.bias = torch.cat([part.bias.detach() for part in parts]).to(dtype) if has_bias else None
        self.packed = None
        if dtype == torch.bfloat16 and self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
            self.weight = self.weight.new_empty(0)  # frees the second copy

    def __call__(self, rows: Tensor) -> Tensor:
        return self._product(rows, "none")

    def silu(self, rows: Tensor) -> Tensor:
        """SiLU of the product."""
        return F.silu(self._product(rows, "none")) if self.packed is None else self._product(rows, "swish")

    def multiplied(self, factor: Tensor, rows: Tensor) -> Tensor:
        """The product, multiplied by ``factor``."""
        if self.packed is None:
            return factor * self._product(rows, "none")
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, factor, self.packed, self.bias, "mul")
        return result

    def _product(self, rows: Tensor, activation: str) -> Tensor:
        if self.packed is None:
            return F.linear(rows, self.weight, self.bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, activation, [], "")
        return result


def _weight(linear: Any) -> Tensor:
    """The weight of a linear map, with the LoRA adapters (arXiv 2106.09685) that peft has put around it."""
    weight: Tensor = linear.weight.detach()
    for name in getattr(linear, "active_adapters", ()):
        weight = weight + linear.get_delta_weight(name).detach()
    return weight


def _heads(config: Any) -> tuple[int, int, int]:
    if not isinstance(getattr(config, "num_attention_heads", None), int):
        raise InputError("its layers have no attention, or not the same number of heads")
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width)
