"""A model in float64, and the same weights as a causal LM that knows nothing of threads, branches or caches."""

import copy

import pytest
import torch
import transformers

from leadre.lm import backbone as backbones


def plain(backbone):
    """A `LlamaForCausalLM` with an embedding row for each word, code and object, and a head of the code rows."""
    config = copy.deepcopy(backbone.body.config)
    words, rows = backbone.layout.words, backbone.layout.codes
    codes_SD = backbone.codes_SD.detach()
    table = torch.cat([backbone.words_VD, codes_SD, codes_SD[backbone.objects_OL].sum(1)])
    config.vocab_size, config.tie_word_embeddings = len(table), False
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).double()
    missing, unexpected = model.model.load_state_dict(backbone.body.state_dict(), strict=False)
    assert (missing, unexpected) == (["embed_tokens.weight"], [])
    head = torch.nn.Linear(*reversed(table.shape)).double()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(table)
        head.weight.zero_()
        head.bias.zero_()
        head.weight[words : words + rows] = codes_SD * backbones.LOGIT_SCALE
        head.bias[words : words + rows] = backbone.bias_S
    model.lm_head = head
    return model.eval()


@pytest.fixture(scope="module")
def with_pointer(small, exact):
    """(backbone in float64, the same weights as a plain causal LM)"""
    made = small.backbone(seed=1, double=True)
    return made, plain(made)


@pytest.fixture(scope="module")
def without_pointer(small, exact):
    made = small.backbone(seed=2, pointer=False, double=True)
    return made, plain(made)
