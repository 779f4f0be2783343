"""The backbone: embeddings of words, codes and objects; creation, depth, saving and loading."""

import numpy as np
import pytest
import torch

from leadre.errors import InputError
from leadre.lm import backbone as backbones
from leadre.lm.layout import Layout

CODES = np.array([[a, b, c] for a in range(4) for b in range(3) for c in range(2)], np.int32)


@pytest.fixture
def backbone(tiny_llama, small):
    layout = Layout(len(small.tokenizer), (4, 3, 2))
    backbone = backbones.create(tiny_llama, layout, CODES, layers=0, pointer=True)
    with torch.no_grad():
        backbone.codes_SD.copy_(torch.randn(backbone.codes_SD.shape, generator=torch.Generator().manual_seed(0)))
    return backbone.eval()


def hidden_states(backbone, ids):
    """Hidden states of one thread."""
    ids_BT = torch.tensor([ids])
    no_branches = torch.zeros(1, 0, len(ids), dtype=torch.bool)
    with torch.no_grad():
        return backbone(ids_BT, torch.arange(len(ids))[None], no_branches, len(ids))[0]


def test_object_embedding_is_the_sum_of_its_codes(backbone):
    layout = backbone.layout
    row_L = layout.rows(CODES[[17]])[0]
    ids = [5, int(layout.code(row_L[1])), int(layout.object(np.array(17)))]
    word, code, thing = backbone.embed(torch.tensor([ids]))[0]
    assert torch.equal(word, backbone.words_VD[5].float())
    assert torch.equal(code, backbone.codes_SD[row_L[1]])
    torch.testing.assert_close(thing, backbone.codes_SD[row_L].sum(0))


def test_first_and_last_id_of_each_range(backbone):
    layout = backbone.layout
    last_word, first_code, last_code, first_object = backbone.embed(
        torch.tensor([[layout.words - 1, layout.words, layout.words + 8, layout.words + 9]])
    )[0]
    assert torch.equal(last_word, backbone.words_VD[-1].float())
    assert torch.equal(first_code, backbone.codes_SD[0]) and torch.equal(last_code, backbone.codes_SD[8])
    torch.testing.assert_close(first_object, backbone.codes_SD[[0, 4, 7]].sum(0))


def test_logits_are_those_of_one_level(backbone):
    hidden = torch.randn(2, 32)
    with torch.no_grad():
        backbone.bias_S[4:7] += torch.tensor([1.0, 2.0, 3.0])
        expected = hidden @ backbone.codes_SD[4:7].T * backbones.LOGIT_SCALE + torch.tensor([1.0, 2.0, 3.0])
        torch.testing.assert_close(backbone.logits(hidden, 1), expected)


def test_word_embeddings_are_frozen_and_code_rows_learn(backbone):
    names = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert {"codes_SD", "bias_S"} < names
    assert not any("words" in name or "embed" in name for name in names)


def test_saved_backbone_loads_with_equal_outputs(backbone, tmp_path):
    ids = [3, 9, int(backbone.layout.code(np.array(2))), int(backbone.layout.object(np.array(5)))]
    backbones.save(backbone, tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    loaded = backbones.load(tmp_path, CODES)
    assert loaded.layout == backbone.layout and not loaded.training
    torch.testing.assert_close(hidden_states(loaded, ids), hidden_states(backbone, ids), rtol=0, atol=0)
    assert torch.equal(loaded.words_VD, backbone.words_VD)
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in backbone.named_parameters()}
    more = np.concatenate([CODES, CODES[:1]])  # a new object after training
    assert len(backbones.load(tmp_path, more).objects_OL) == len(CODES) + 1


@pytest.mark.parametrize("pointer", [False, True])
def test_backbone_of_fewer_layers_is_saved_and_loaded(tiny_llama, small, tmp_path, pointer):
    layout = Layout(len(small.tokenizer), (4, 3, 2))
    whole = backbones.create(tiny_llama, layout, CODES, layers=0, pointer=pointer)
    cut = backbones.create(tiny_llama, layout, CODES, layers=[1], pointer=pointer).eval()
    assert len(cut.body.layers) == cut.body.config.num_hidden_layers == 1
    kept = cut.body.layers[0]
    old = whole.body.layers[1]
    assert kept.self_attn.layer_idx == 0
    assert torch.equal(kept.self_attn.q_proj.weight, old.self_attn.q_proj.weight)
    backbones.save(cut, tmp_path)
    loaded = backbones.load(tmp_path, CODES)
    assert (loaded.pointer is not None) == pointer
    torch.testing.assert_close(hidden_states(loaded, [1, 2, 3]), hidden_states(cut, [1, 2, 3]), rtol=0, atol=0)
    first = backbones.create(tiny_llama, layout, CODES, layers=1, pointer=pointer)
    assert torch.equal(first.body.layers[0].mlp.up_proj.weight, whole.body.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("layers", [3, [0, 2], [-1], -1, []])
def test_missing_layer_is_an_input_error(tiny_llama, layers):
    layout = Layout(10, (4, 3, 2))
    with pytest.raises(InputError, match="the backbone has layers 0 to 1"):
        backbones.create(tiny_llama, layout, CODES, layers=layers, pointer=False)


def title_ids(words):
    """Titles in which objects with the same first two codes share words."""
    return [np.array([(7 * i // 2) % words, (11 * (i // 6)) % words, 3 + i // 6]) for i in range(len(CODES))]


def centroids(titles, words_VD):
    """Centroids of these titles: the mean vector of each first code, then the mean residual of each second code."""
    vectors = np.stack([words_VD[ids].mean(0) for ids in titles])
    first = np.stack([vectors[CODES[:, 0] == a].mean(0) for a in range(4)])
    left = vectors - first[CODES[:, 0]]
    second = np.stack([left[CODES[:, 1] == b].mean(0) for b in range(3)])
    return first.astype(np.float32), second.astype(np.float32)


def test_code_rows_start_near_the_words_of_titles(backbone):
    words_VD = backbone.words_VD.float().numpy()
    titles = title_ids(len(words_VD))
    backbones.init_codes(backbone, centroids(titles, words_VD), titles, seed=0)
    target = np.stack([words_VD[ids].mean(0) for ids in titles])
    have = backbone.codes_SD.detach().numpy()[backbone.objects_OL.numpy()].sum(1)
    target = target - target.mean(0)
    have = have - have.mean(0)

    def similarity(a, b):
        return np.mean(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))

    # half of the power of a quantised row is random, and all of it in the last level: with two quantised levels the
    # similarity is at most 1 / sqrt(3) = 0.58, less the residual of two codes; with other objects' titles, about 0
    assert similarity(target, have) > 0.3
    assert abs(similarity(target, np.roll(have, 11, axis=0))) < 0.25
    assert 0.5 < backbone.codes_SD.std() / backbone.words_VD.float().std() < 1.5  # the norm of words


def test_code_rows_depend_on_the_seed_alone(backbone):
    titles = title_ids(backbone.layout.words)
    vectors = centroids(titles, backbone.words_VD.float().numpy())
    rows = []
    for seed in (0, 0, 1):
        backbones.init_codes(backbone, vectors, titles, seed)
        rows.append(backbone.codes_SD.detach().clone())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_object_without_title_leaves_rows_finite(backbone):
    titles = title_ids(backbone.layout.words)
    vectors = centroids(titles, backbone.words_VD.float().numpy())
    titles[3] = np.zeros(0, np.int32)
    backbones.init_codes(backbone, vectors, titles, seed=0)
    assert bool(torch.isfinite(backbone.codes_SD).all())


def test_unknown_object_does_not_change_code_rows(backbone):
    titles = title_ids(backbone.layout.words)
    known_O = np.ones(len(CODES), bool)
    known_O[3] = False
    vectors = centroids(titles, backbone.words_VD.float().numpy())
    rows = []
    for words in (titles[3], np.array([5, 6], np.int64)):
        backbones.init_codes(backbone, vectors, [*titles[:3], words, *titles[4:]], 0, known_O)
        rows.append(backbone.codes_SD.detach().clone())
    assert torch.equal(rows[0], rows[1])


def test_randomised_body_has_unrelated_weights(backbone):
    was = {name: tensor.clone() for name, tensor in backbone.body.state_dict().items()}
    backbones.randomise(backbone, seed=1)
    now = backbone.body.state_dict()
    matrices = [name for name in was if was[name].dim() == 2]
    assert len(matrices) == 14
    for name in matrices:
        both = torch.stack([was[name].flatten(), now[name].flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2, f"{name} is unchanged"
    backbones.randomise(backbone, seed=1)
    assert all(torch.equal(tensor, backbone.body.state_dict()[name]) for name, tensor in now.items())


def test_word_attends_only_to_earlier_positions(backbone):
    ids = [4, 8, 15, 16, 23, 42]
    changed = [*ids[:3], 99, 98, 97]
    torch.testing.assert_close(
        hidden_states(backbone, ids)[:3], hidden_states(backbone, changed)[:3], rtol=0, atol=1e-6
    )
    assert not torch.allclose(hidden_states(backbone, ids)[3:], hidden_states(backbone, changed)[3:])
    assert not torch.allclose(hidden_states(backbone, [5, *ids[1:]])[-1], hidden_states(backbone, ids)[-1])


def test_blockwise_attention_equals_attention_in_one_piece(backbone, monkeypatch):
    from leadre.lm import attention

    ids = np.random.default_rng(0).integers(0, backbone.layout.words, 23).tolist()
    whole = hidden_states(backbone, ids)
    monkeypatch.setattr(attention, "CHUNK", 4)
    torch.testing.assert_close(
        hidden_states(backbone, ids), whole, rtol=0, atol=2e-2 if backbones.has_bfloat16(backbone.device) else 1e-5
    )


def test_precision_follows_the_processor():
    assert isinstance(backbones.has_bfloat16(torch.device("cpu")), bool)
    with backbones.precision(torch.device("cpu")):
        kind = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert kind == (torch.bfloat16 if backbones.has_bfloat16(torch.device("cpu")) else torch.float32)
