"""Tiny random causal LMs of the model types that docs/backbones.md lists."""

from __future__ import annotations

import torch
import transformers

COMMON = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
WINDOW = {"sliding_window": 6}  # shorter than the prompts of the tests
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

# model type -> options of its config
EXACT = {
    "llama": GROUPED,
    "mistral": GROUPED | WINDOW,
    "ministral": GROUPED | WINDOW,
    "mixtral": GROUPED | WINDOW | {"num_local_experts": 4},
    "qwen2": GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": GROUPED | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16},
    "qwen3": GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": GROUPED | EXPERTS | {"num_experts": 4},
    "smollm3": GROUPED | {"no_rope_layer_interval": 2},
    "gemma": GROUPED,
    "gemma2": GROUPED | WINDOW | {"query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0},
    "gemma3_text": GROUPED | WINDOW | {"query_pre_attn_scalar": 5},
    "gpt_oss": GROUPED | WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED | WINDOW,
    "olmoe": GROUPED | EXPERTS | {"num_experts": 4},
    "exaone4": GROUPED | WINDOW | {"sliding_window_pattern": 2},
    "phi": {},
    "phi3": GROUPED | WINDOW,
    "granite": GROUPED | {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 4.0},
    "cohere": GROUPED,
    "cohere2": GROUPED | WINDOW,
    "glm": GROUPED,
    "glm4": GROUPED,
    "starcoder2": GROUPED | WINDOW,
    "helium": GROUPED,
    "apertus": GROUPED,
    "seed_oss": GROUPED,
    "gpt_neox": {},
    "gpt2": {},
    "opt": {},
}

# model type -> (options of its config, the reason for which it is refused)
REFUSED = {
    "bloom": ({}, "its attention is its own code"),
    "falcon": ({}, "its attention is its own code"),
    "gptj": ({"rotary_dim": 4}, "its attention is its own code"),
    "mpt": ({}, "its attention is its own code"),
    "stablelm": (GROUPED, "only its layers"),
    "nemotron": (GROUPED, "only its layers"),
    "mamba": ({}, "cannot be used"),
    "rwkv": ({}, "its attention is its own code"),
    "jamba": (GROUPED, "only its layers"),
    "falcon_h1": (GROUPED, "hidden states of training differ"),
    "qwen3_next": (GROUPED, "only its layers"),
    "recurrent_gemma": (GROUPED, "only its layers"),
    "deepseek_v3": (
        EXPERTS
        | {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
        "width of values",
    ),
    "diffllama": (GROUPED, "only its layers"),
    "gemma3n_text": (
        GROUPED
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 60}
        | {"num_kv_shared_layers": 0, "laurel_rank": 4},
        "hidden states of training differ",
    ),
    "llama4_text": (GROUPED | {"num_local_experts": 2, "intermediate_size_mlp": 48}, "cannot be used"),
    "bert": ({}, "hidden states of training differ"),
}


def save(model_type, options, folder, seed=0):
    """Write a model whose weights are so large that every part of it changes the hidden states."""
    config = transformers.AutoConfig.for_model(model_type, **COMMON | options)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(0.3 * noise if parameter.dim() > 1 else parameter + 0.3 * noise)
    model.save_pretrained(folder)
    return folder
