"""The body's forward pass for generation: packed rows of many requests, attention handed in from outside.

Training runs the Hugging Face model itself. Generation needs less (no gradients, no masks over padding) and wants more:
rows of all requests in one matrix whatever their lengths, and keys and values where the beam search wants them. So a
runner maps rows to hidden states and asks its caller, layer by layer, what attention over its cache gives.

`Packed` re-implements the Llama layer with weights stored once as the processor multiplies them best; `Plain` drives
any other Hugging Face body. Both compute the same function.

Letters: N rows, D width, H heads, G key-value heads, E width of a head.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Attend(Protocol):
    """What the caller does at each layer: store keys and values, and mix values for the queries."""

    def __call__(self, layer: int, query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor) -> Tensor:
        """Mixed values [N, H, E], of scores scaled by E ** -0.5."""
        ...


class Runner(Protocol):
    """Rows [N, D] at ``positions_N`` -> hidden states [N, D] after the last norm."""

    layers: int
    heads: tuple[int, int, int]  # (H, G, E)
    dtype: torch.dtype  # of keys and values

    def __call__(self, rows_ND: Tensor, positions_N: Tensor, attend: Attend) -> Tensor: ...


def runner_of(body: Any, dtype: torch.dtype) -> Runner:
    """The fastest runner there is for ``body``, computing in ``dtype``. Weights are copied: make it after training."""
    return Packed(body, dtype) if body.config.model_type == "llama" else Plain(body, dtype)


class Plain:
    """Any Hugging Face body, through its own forward pass."""

    def __init__(self, body: Any, dtype: torch.dtype) -> None:
        self.body, self.layers, self.heads, self.dtype = body, body.config.num_hidden_layers, _heads(body.config), dtype

    def __call__(self, rows_ND: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows_ND.device)  # keeps a mask from being built
        with torch.autocast(rows_ND.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            hidden: Tensor = self.body(
                inputs_embeds=rows_ND[None],
                position_ids=positions_N[None],
                attention_mask=nothing,
                use_cache=False,
                attend=attend,
            ).last_hidden_state
        return hidden[0].to(rows_ND.dtype)


class Packed:
    """The Llama layer (RMS norm, rotary positions, gated MLP), with fused projections."""

    def __init__(self, body: Any, dtype: torch.dtype) -> None:
        self.rotary, self.layers, self.heads, self.dtype = body.rotary_emb, len(body.layers), _heads(body.config), dtype
        self.norm, self.eps = body.norm.weight.detach(), float(body.config.rms_norm_eps)
        self.blocks = [_Block(layer, dtype) for layer in body.layers]

    def __call__(self, rows_ND: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        # the residual stream keeps the type of the rows (float32), as in training; products are made in ``dtype``
        count, (H, G, E) = len(rows_ND), self.heads
        cos, sin = (part[0, :, None].to(self.dtype) for part in self.rotary(rows_ND, positions_N[None]))
        sin = torch.cat([-sin[..., : E // 2], sin[..., E // 2 :]], -1)  # the sign of the rotated half, once
        stream = rows_ND
        for index, block in enumerate(self.blocks):
            qkv = block.qkv(self._norm(stream, block.norm_in)).view(count, H + 2 * G, E)
            turned = qkv[:, : H + G]
            turned = turned * cos + turned.roll(E // 2, -1) * sin
            mixed = attend(index, turned[:, :H], turned[:, H:], qkv[:, H + G :])
            stream = stream + block.out(mixed.reshape(count, H * E))
            rows = self._norm(stream, block.norm_mlp)
            stream = stream + block.down(block.up.times(block.gate.silu(rows), rows))
        return F.rms_norm(stream, stream.shape[-1:], self.norm.to(stream.dtype), self.eps)

    def _norm(self, stream: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(stream, stream.shape[-1:], weight.to(stream.dtype), self.eps).to(self.dtype)


class _Block:
    """Weights of one layer."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attn, mlp = layer.self_attn, layer.mlp
        self.norm_in = layer.input_layernorm.weight.detach()
        self.norm_mlp = layer.post_attention_layernorm.weight.detach()
        self.qkv = _Linear([attn.q_proj, attn.k_proj, attn.v_proj], dtype)
        self.out = _Linear([attn.o_proj], dtype)
        # apart, as each then ends in what is done with it: one pass over the wide rows less
        self.gate, self.up = _Linear([mlp.gate_proj], dtype), _Linear([mlp.up_proj], dtype)
        self.down = _Linear([mlp.down_proj], dtype)


class _Linear:
    """Several linear maps of one input as one. bfloat16 weights on CPUs are stored in oneDNN's own blocks.

    Reordering them at every call takes as long as the product itself where a beam search has few rows.
    """

    def __init__(self, parts: list[Any], dtype: torch.dtype) -> None:
        self.weight = torch.cat([part.weight.detach() for part in parts]).to(dtype)
        has_bias = parts[0].bias is not None
        self.bias = torch.cat([part.bias.detach() for part in parts]).to(dtype) if has_bias else None
        self.packed = None
        if dtype == torch.bfloat16 and self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
            self.weight = self.weight.new_empty(0)  # not held twice

    def __call__(self, rows: Tensor) -> Tensor:
        return self._product(rows, "none")

    def silu(self, rows: Tensor) -> Tensor:
        """SiLU of the product."""
        return F.silu(self._product(rows, "none")) if self.packed is None else self._product(rows, "swish")

    def times(self, factor: Tensor, rows: Tensor) -> Tensor:
        """The product, multiplied by ``factor``."""
        if self.packed is None:
            return factor * self._product(rows, "none")
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, factor, self.packed, self.bias, "mul")
        return result

    def _product(self, rows: Tensor, then: str) -> Tensor:
        if self.packed is None:
            return F.linear(rows, self.weight, self.bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, then, [], "")
        return result


def _heads(config: Any) -> tuple[int, int, int]:
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width)
