"""Export of a backbone as a plain causal LM of transformers, for software that has only token IDs and one sequence.

Letters: V words, S code rows, D width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from leadre.lm.backbone import LOGIT_SCALE, Backbone

NEUTRAL = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}  # of Gemma, Granite, Cohere


def causal_lm(backbone: Backbone, *, attention: str = "sdpa") -> Any:
    """A causal LM of the body's class, in the dtype of the code rows, with one embedding row per ID of the layout.

    Its logits of codes equal `Backbone.logits`; all other logits are zero. Prior and pointer are not exported.
    """
    from transformers import AutoModelForCausalLM

    words = backbone.layout.words
    codes_SD = backbone.codes_SD.detach()
    objects_OD = codes_SD[backbone.objects_OL].sum(1)
    table = torch.cat([backbone.words_VD.to(codes_SD), codes_SD, objects_OD])
    config = copy.deepcopy(backbone.body.config)
    config.vocab_size = len(table)
    for name, neutral in NEUTRAL.items():
        if hasattr(config, name):
            setattr(config, name, neutral)
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(codes_SD)
    # the body lacks only the embeddings, which are copied below
    missing, unexpected = model.base_model.load_state_dict(backbone.body.state_dict(), strict=False)
    assert len(missing) == 1 and not unexpected, f"not in the body: {missing}; not in the causal LM: {unexpected}"
    head = torch.nn.Linear(codes_SD.shape[1], len(table)).to(codes_SD)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table)
        head.weight.zero_()
        head.bias.zero_()
        head.weight[words : words + len(codes_SD)] = codes_SD * LOGIT_SCALE
        head.bias[words : words + len(codes_SD)] = backbone.bias_S.detach()
    model.set_output_embeddings(head)
    return model.eval()
