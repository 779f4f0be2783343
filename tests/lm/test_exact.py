"""Model types: search and training equal the model's own forward pass, or the model is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from leadre.errors import InputError
from leadre.generate.engine import Engine
from leadre.lm import attention, cache
from leadre.lm import backbone as backbones
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.export import causal_lm
from leadre.lm.layout import Layout
from leadre.lm.prefix import PrefixCache
from leadre.lm.runner import EagerRunner, PackedRunner, make_runner
from leadre.semid.trie import build
from leadre.tune import run as tune_stage

from .families import COMMON, EXACT, GROUPED, REFUSED, save

CODES = np.array([[a, b, c] for a in range(4) for b in range(3) for c in range(2)], np.int32)
LAYOUT = Layout(50, (4, 3, 2))
PROMPT = 30
PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No bfloat16, on any processor."""
    monkeypatch.setattr(backbones, "has_bfloat16", lambda device: False)
    monkeypatch.setattr("leadre.lm.decode.has_bfloat16", lambda device: False)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Folder of a tiny model of a type in `EXACT`; each is written once."""
    folders = {}

    def folder(model_type):
        if model_type not in folders:
            folders[model_type] = save(model_type, EXACT[model_type], tmp_path_factory.mktemp(model_type))
        return folders[model_type]

    return folder


def create(folder, layers=0):
    """A backbone whose code rows are large."""
    backbone = backbones.create(folder, LAYOUT, CODES, layers=layers, pointer=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        backbone.codes_SD.copy_(torch.randn(backbone.codes_SD.shape, generator=generator))
        backbone.bias_S.copy_(torch.randn(backbone.bias_S.shape, generator=generator))
    return backbone.eval()


def prompt_of(backbone, seed=0):
    """IDs of words, codes and objects."""
    last = LAYOUT.words + LAYOUT.codes + len(CODES)
    return np.random.default_rng(seed).integers(0, last, PROMPT).astype(np.int32)


@torch.no_grad()
def by_own_forward(backbone, ids):
    """Log-probability of each object after the prompt: every path is scored by the plain causal LM."""
    lm = causal_lm(backbone, attention="eager")
    rows_OL = backbone.objects_OL
    paths_OT = torch.cat([torch.from_numpy(ids).long().expand(len(CODES), -1), LAYOUT.words + rows_OL[:, :-1]], dim=1)
    hidden_OTD = lm.base_model(paths_OT, use_cache=False).last_hidden_state[:, len(ids) - 1 :]
    scores_OLS = lm.get_output_embeddings()(hidden_OTD)[..., LAYOUT.words : LAYOUT.words + LAYOUT.codes]
    log_p_O = torch.zeros(len(CODES))
    for level, (start, end) in enumerate(zip(LAYOUT.offsets[:-1], LAYOUT.offsets[1:], strict=True)):
        log_p_OC = scores_OLS[:, level, start:end].log_softmax(-1)  # every code of a level is live below every prefix
        log_p_O += log_p_OC.gather(1, rows_OL[:, level, None] - start)[:, 0]
    return log_p_O.numpy()


def every_object(end):
    """A request with every object live."""
    return BeamRequest(end, build(CODES, LAYOUT.sizes), np.arange(len(CODES)))


def by_beam_search(backbone, ids, **options):
    """Log-probability of each object by a beam search that keeps all of them."""
    searcher = BeamSearcher(backbone, make_runner(backbone.body, torch.float32), **options)
    ((result,),) = searcher([(ids, [every_object(len(ids) - 1)])], BeamPolicy(len(CODES)))
    return result.log_p[np.argsort(result.rows)]


@torch.no_grad()
def by_training(backbone, ids):
    """Log-probability of each object by the forward pass of training: a branch for each path."""
    count = len(CODES)
    depth = len(LAYOUT.sizes) - 1
    branches = LAYOUT.words + backbone.objects_OL[:, :-1]
    ids_1T = torch.cat([torch.from_numpy(ids).long(), branches.flatten()])[None]
    positions_1T = torch.cat([torch.arange(PROMPT), PROMPT + torch.arange(depth).repeat(count)])[None]
    own = torch.block_diag(*[torch.ones(depth, depth).tril()] * count).bool()
    mask_1NK = torch.cat([torch.ones(count * depth, PROMPT, dtype=torch.bool), own], dim=1)[None]
    hidden_TD = backbone(ids_1T, positions_1T, mask_1NK, PROMPT)[0]
    ends_OD = hidden_TD[PROMPT - 1].expand(count, 1, -1)
    hidden_OLD = torch.cat([ends_OD, hidden_TD[PROMPT:].view(count, depth, -1)], dim=1)
    log_p_O = torch.zeros(count)
    for level, start in enumerate(LAYOUT.offsets[:-1]):
        log_p_OC = backbone.logits(hidden_OLD[:, level], level).log_softmax(-1)
        log_p_O += log_p_OC.gather(1, backbone.objects_OL[:, level, None] - start)[:, 0]
    return log_p_O.numpy()


def assert_close(log_p, expected):
    np.testing.assert_allclose(log_p, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model_type", EXACT)
def test_search_and_training_equal_exhaustive_scoring_by_the_model_itself(folder_of, tmp_path, model_type):
    backbone = create(folder_of(model_type), layers=0 if model_type == "opt" else [0, 2])
    ids = prompt_of(backbone)
    expected = by_own_forward(backbone, ids)
    assert np.ptp(expected) > 1 and np.exp(expected).sum() == pytest.approx(1, rel=1e-4)
    assert_close(by_training(backbone, ids), expected)
    assert_close(by_beam_search(backbone, ids), expected)
    backbones.save(backbone, tmp_path)
    loaded = backbones.load(tmp_path, CODES)
    assert_close(by_own_forward(loaded, ids), expected)
    assert_close(by_training(loaded, ids), expected)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_blocks_prefix_cache_and_fixed_shapes_change_no_result(folder_of, monkeypatch, model_type):
    backbone = create(folder_of(model_type))
    ids = prompt_of(backbone)
    expected = by_own_forward(backbone, ids)
    assert_close(by_beam_search(backbone, ids, graphs=True), expected)
    monkeypatch.setattr(attention, "CHUNK", 5)
    monkeypatch.setattr(cache, "CHUNK", 5)
    assert_close(by_beam_search(backbone, ids), expected)
    assert_close(by_training(backbone, ids), expected)
    prefix_cache = PrefixCache(capacity_mb=1, block_size=4)
    for _ in range(2):
        assert_close(by_beam_search(backbone, ids, prefix_cache=prefix_cache), expected)
    assert prefix_cache.hits == 7


@pytest.mark.parametrize("window", [1, 2, 3])
def test_window_shorter_than_an_id(tmp_path, window):
    backbone = create(save("mistral", GROUPED | {"sliding_window": window}, tmp_path))
    ids = prompt_of(backbone)
    expected = by_own_forward(backbone, ids)
    assert_close(by_training(backbone, ids), expected)
    assert_close(by_beam_search(backbone, ids), expected)
    assert_close(by_beam_search(backbone, ids, graphs=True), expected)


@pytest.mark.parametrize("model_type", REFUSED)
def test_model_type_that_cannot_be_exact_is_refused(tmp_path, model_type):
    options, reason = REFUSED[model_type]
    with pytest.raises(InputError, match=rf"^--backbone: .*{model_type}.*{re.escape(reason)}.*docs/backbones.md$"):
        create(save(model_type, options, tmp_path))


def test_page_lists_the_tested_model_types():
    rows = [line.split("|")[1:-1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    listed = {
        verdict: {name for types, _, row_verdict, *_ in rows if row_verdict.strip() == verdict for name in names(types)}
        for verdict in ("exact", "refused")
    }
    assert listed == {"exact": set(EXACT), "refused": set(REFUSED)}


def names(cell):
    return re.findall(r"`(\w+)`", cell)


def test_difference_is_found_whichever_part_is_wrong(folder_of, monkeypatch):
    """The check at creation, with a fault in the attention of training, in that of search, and in the saved config."""
    folder = folder_of("mistral")
    with monkeypatch.context() as patch:
        patch.setattr(attention, "_is_near", lambda *_: True)
        with pytest.raises(InputError, match="hidden states of training differ by"):
            create(folder)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "within_window", lambda bias, *_: bias)
        with pytest.raises(InputError, match="hidden states of search differ by"):
            create(folder)
    with monkeypatch.context() as patch:
        whole = backbones.bodies.empty

        def other(folder):
            body = whole(folder)
            body.config.sliding_window = 3
            return body

        patch.setattr(backbones.bodies, "empty", other)
        with pytest.raises(InputError, match="hidden states of the saved model differ by"):
            create(folder)
    create(folder)


def test_window_of_real_length_is_compared_too(tmp_path, monkeypatch):
    """The comparison has 40 tokens; it cuts a window of thousands, and restores it."""
    folder = save("gemma2", EXACT["gemma2"] | {"sliding_window": 4096, "attn_logit_softcapping": None}, tmp_path)
    backbone = create(folder)
    sliding, full = (layer.self_attn.sliding_window for layer in backbone.body.layers[:2])
    assert (backbone.body.config.sliding_window, sliding, full) == (4096, 4096, None)
    monkeypatch.setattr(attention, "_is_near", lambda *_: True)
    with pytest.raises(InputError, match="hidden states of training differ by"):
        create(folder)


def test_argument_of_attention_that_is_not_implemented_is_refused(folder_of, monkeypatch):
    from transformers.models.mistral.modeling_mistral import MistralAttention

    forward = MistralAttention.forward
    monkeypatch.setattr(
        MistralAttention, "forward", lambda self, *args, **rest: forward(self, *args, **rest, position_bias=1)
    )
    with pytest.raises(InputError, match="its attention takes position_bias, which is not implemented"):
        create(folder_of("mistral"))


def test_body_without_layer_list_keeps_all_layers(folder_of):
    assert len(create(folder_of("opt")).body.decoder.layers) == COMMON["num_hidden_layers"]
    with pytest.raises(InputError, match=r"^--layers 2: OPTModel has no list of layers to cut; use --layers 0"):
        create(folder_of("opt"), layers=2)


def test_lists_of_the_config_follow_the_kept_layers(folder_of):
    config = create(folder_of("smollm3"), layers=[1, 2]).body.config
    assert (config.num_hidden_layers, config.no_rope_layers, len(config.layer_types)) == (2, [0, 1], 2)


def test_llama_of_another_activation_is_exact(tmp_path):
    backbone = create(save("llama", GROUPED | {"hidden_act": "gelu"}, tmp_path))
    ids = prompt_of(backbone)
    assert isinstance(make_runner(backbone.body, torch.float32), EagerRunner)
    assert_close(by_beam_search(backbone, ids), by_own_forward(backbone, ids))


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_lora_adapters_take_part_in_search(folder_of, model_type):
    """As in validation: the search is made of the body while it still has its adapters."""
    backbone = create(folder_of(model_type))
    ids = prompt_of(backbone)
    before = by_training(backbone, ids)
    tune_stage._add_lora(backbone, 4)
    with torch.no_grad():
        for name, parameter in backbone.body.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)
    trained = by_training(backbone, ids)
    assert np.abs(trained - before).max() > 0.5
    runner = make_runner(backbone.body, torch.float32)
    assert isinstance(runner, PackedRunner if model_type == "llama" else EagerRunner)
    assert_close(by_beam_search(backbone, ids), trained)
    backbone.body = backbone.body.merge_and_unload()
    assert_close(by_beam_search(backbone, ids), trained)


def test_words_have_the_scale_of_the_model_and_its_own_head(folder_of, tmp_path):
    gemma = create(folder_of("gemma"))
    assert gemma.embed_scale == pytest.approx(COMMON["hidden_size"] ** 0.5) and gemma.head_VD is None
    untied = create(folder_of("qwen2"))
    assert untied.embed_scale == 1
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    head_VD = load_file(folder_of("qwen2") / "model.safetensors")["lm_head.weight"][: LAYOUT.words]
    expected = hidden @ head_VD.bfloat16().float().T * backbones.WORD_SCALE
    torch.testing.assert_close(untied.word_logits(hidden), expected)
    backbones.save(untied, tmp_path)
    torch.testing.assert_close(backbones.load(tmp_path, CODES).word_logits(hidden), expected)


def test_model_of_an_earlier_release_has_no_scale(folder_of, tmp_path):
    backbone = create(folder_of("llama"))
    backbones.save(backbone, tmp_path)
    facts = tmp_path / backbones.FACTS
    facts.write_text(facts.read_text().replace(', "embed_scale": 1.0', ""))
    assert "embed_scale" not in facts.read_text()
    assert backbones.load(tmp_path, CODES).embed_scale == 1


@pytest.mark.parametrize("model_type", ["gemma2", "granite", "cohere", "llama"])
def test_exported_logits_of_codes_are_those_of_the_backbone(folder_of, model_type):
    backbone = create(folder_of(model_type))
    ids = torch.from_numpy(prompt_of(backbone)).long()[None]
    with torch.no_grad():
        logits = causal_lm(backbone, attention="eager")(ids).logits[0, :, LAYOUT.words : LAYOUT.words + LAYOUT.codes]
        hidden = backbone(ids, torch.arange(PROMPT)[None], torch.zeros(1, 0, PROMPT, dtype=torch.bool), PROMPT)[0]
        expected = torch.cat([backbone.logits(hidden, level) for level in range(3)], dim=1)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_tokenizer_longer_than_the_embeddings_is_refused(folder_of):
    layout = Layout(COMMON["vocab_size"] + 1, LAYOUT.sizes)
    with pytest.raises(InputError, match="the tokenizer has 61 tokens, the model embeddings for 60"):
        backbones.create(folder_of("llama"), layout, CODES, layers=0, pointer=False)


def test_folder_of_no_causal_model_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="--backbone"):
        create(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(InputError, match="--backbone"):
        create(tmp_path)


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "llama"])
def test_prompt_longer_than_the_positions_is_refused(tmp_path, model_type):
    backbone = create(save(model_type, EXACT[model_type] | {"max_position_embeddings": 40}, tmp_path))
    ids = np.resize(prompt_of(backbone), 39)
    with pytest.raises(InputError, match="a prompt of 41 positions: the backbone has 40; lower --short-tokens"):
        by_beam_search(backbone, ids)  # two of the three codes are inputs
    positions_1T = torch.arange(41)[None]
    with pytest.raises(InputError, match="a prompt of 41 positions: the backbone has 40"):
        backbone(positions_1T, positions_1T, torch.zeros(1, 0, 41, dtype=torch.bool), 41)
    with Engine(BeamSearcher(backbone)) as engine, pytest.raises(InputError, match="a prompt of 41 positions"):
        engine.submit(ids, every_object(38), BeamPolicy(4))
    assert len(by_beam_search(backbone, ids[:38])) == len(CODES)


def test_longrope_ends_at_its_original_length():
    factors = [1.0] * 4
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 1e4}
    options = COMMON | GROUPED | {"original_max_position_embeddings": 64, "rope_parameters": rope}
    config = transformers.AutoConfig.for_model("phi3", **options)
    assert backbones.bodies.max_positions(config) == 64
    config.rope_parameters["rope_type"] = "default"
    assert backbones.bodies.max_positions(config) == 256


def test_training_has_no_dropout(tmp_path):
    backbone = create(save("gpt2", {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5}, tmp_path)).train()
    assert backbone.training and not backbone.body.training
    ids = prompt_of(backbone)
    assert_close(by_training(backbone, ids), by_training(backbone.eval(), ids))
