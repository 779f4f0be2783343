"""Words, codes and objects through the body of a causal LM; made, cut, saved and loaded."""

import numpy as np
import pytest
import torch
from torch import nn

from leadre.errors import InputError
from leadre.lm import backbone as backbones
from leadre.lm.layout import Layout

CODES = np.array([[a, b, c] for a in range(4) for b in range(3) for c in range(2)], np.int32)


@pytest.fixture
def made(tiny_llama, small):
    layout = Layout(len(small.tokenizer), (4, 3, 2))
    backbone = backbones.create(tiny_llama, layout, CODES, layers=0, pointer=True)
    with torch.no_grad():
        backbone.codes_SD.copy_(torch.randn(backbone.codes_SD.shape, generator=torch.Generator().manual_seed(0)))
    return backbone.eval()


def read(backbone, ids):
    """Hidden states of one thread."""
    ids_BT = torch.tensor([ids])
    nothing = torch.zeros(1, 0, len(ids), dtype=torch.bool)
    with torch.no_grad():
        return backbone(ids_BT, torch.arange(len(ids))[None], nothing, len(ids))[0]


def test_an_object_is_read_as_the_sum_of_its_codes(made):
    layout = made.layout
    row_L = layout.rows(CODES[[17]])[0]
    ids = [5, int(layout.code(row_L[1])), int(layout.object(np.array(17)))]
    word, code, thing = made.embed(torch.tensor([ids]))[0]
    assert torch.equal(word, made.words_VD[5].float())
    assert torch.equal(code, made.codes_SD[row_L[1]])
    torch.testing.assert_close(thing, made.codes_SD[row_L].sum(0))


def test_edges_of_the_ranges_are_embedded_right(made):
    layout = made.layout
    last_word, first_code, last_code, first_object = made.embed(
        torch.tensor([[layout.words - 1, layout.words, layout.words + 8, layout.words + 9]])
    )[0]
    assert torch.equal(last_word, made.words_VD[-1].float())
    assert torch.equal(first_code, made.codes_SD[0]) and torch.equal(last_code, made.codes_SD[8])
    torch.testing.assert_close(first_object, made.codes_SD[[0, 4, 7]].sum(0))


def test_scores_are_those_of_one_level_only(made):
    hidden = torch.randn(2, 32)
    with torch.no_grad():
        made.bias_S[4:7] += torch.tensor([1.0, 2.0, 3.0])
        expected = hidden @ made.codes_SD[4:7].T * backbones.LOGIT_SCALE + torch.tensor([1.0, 2.0, 3.0])
        torch.testing.assert_close(made.logits(hidden, 1), expected)


def test_words_learn_nothing_and_codes_do(made):
    names = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert {"codes_SD", "bias_S"} < names
    assert not any("words" in name or "embed" in name for name in names)


def test_saved_and_loaded_it_answers_the_same(made, tmp_path):
    ids = [3, 9, int(made.layout.code(np.array(2))), int(made.layout.object(np.array(5)))]
    backbones.save(made, tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    loaded = backbones.load(tmp_path, CODES)
    assert loaded.layout == made.layout and not loaded.training
    torch.testing.assert_close(read(loaded, ids), read(made, ids), rtol=0, atol=0)
    assert torch.equal(loaded.words_VD, made.words_VD)
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in made.named_parameters()}
    more = np.concatenate([CODES, CODES[:1]])  # an object that came after training
    assert len(backbones.load(tmp_path, more).objects_OL) == len(CODES) + 1


@pytest.mark.parametrize("pointer", [False, True])
def test_a_cut_backbone_survives_saving(tiny_llama, small, tmp_path, pointer):
    layout = Layout(len(small.tokenizer), (4, 3, 2))
    whole = backbones.create(tiny_llama, layout, CODES, layers=0, pointer=pointer)
    cut = backbones.create(tiny_llama, layout, CODES, layers=[1], pointer=pointer).eval()
    assert len(cut.body.layers) == cut.body.config.num_hidden_layers == 1
    kept, old = cut.body.layers[0], whole.body.layers[1]
    assert kept.self_attn.layer_idx == 0
    assert torch.equal(kept.self_attn.q_proj.weight, old.self_attn.q_proj.weight)
    backbones.save(cut, tmp_path)
    loaded = backbones.load(tmp_path, CODES)
    assert (loaded.pointer is not None) == pointer
    torch.testing.assert_close(read(loaded, [1, 2, 3]), read(cut, [1, 2, 3]), rtol=0, atol=0)
    first = backbones.create(tiny_llama, layout, CODES, layers=1, pointer=pointer)
    assert torch.equal(first.body.layers[0].mlp.up_proj.weight, whole.body.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("layers", [3, [0, 2], [-1], -1, []])
def test_a_layer_that_is_not_there_is_the_users_fault(tiny_llama, layers):
    layout = Layout(10, (4, 3, 2))
    with pytest.raises(InputError, match="the backbone has layers 0 to 1"):
        backbones.create(tiny_llama, layout, CODES, layers=layers, pointer=False)


def test_a_body_without_a_list_of_layers_can_only_be_kept_whole():
    body = nn.Linear(2, 2)
    backbones.cut_depth(body, 0)
    with pytest.raises(InputError, match="use --layers 0"):
        backbones.cut_depth(body, 2)


def test_layer_types_are_cut_with_the_layers():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Module() for _ in range(3))
            for layer in self.layers:
                layer.self_attn = nn.Module()
            self.config = type("Config", (), {"layer_types": ["full", "sliding", "full"], "num_hidden_layers": 3})()

    body = Body()
    backbones.cut_depth(body, [1, 2])
    assert body.config.layer_types == ["sliding", "full"]


def title_ids(words):
    """Titles in which objects with the same first two codes share words."""
    return [np.array([(7 * i // 2) % words, (11 * (i // 6)) % words, 3 + i // 6]) for i in range(len(CODES))]


def centroids(titles, words_VD):
    """What a quantiser of these titles would find: the mean vector at each first code, then what is left over."""
    vectors = np.stack([words_VD[ids].mean(0) for ids in titles])
    first = np.stack([vectors[CODES[:, 0] == a].mean(0) for a in range(4)])
    left = vectors - first[CODES[:, 0]]
    second = np.stack([left[CODES[:, 1] == b].mean(0) for b in range(3)])
    return first.astype(np.float32), second.astype(np.float32)


def test_code_rows_start_near_the_titles_words(made):
    words_VD = made.words_VD.float().numpy()
    titles = title_ids(len(words_VD))
    backbones.init_codes(made, centroids(titles, words_VD), titles, seed=0)
    target = np.stack([words_VD[ids].mean(0) for ids in titles])
    have = made.codes_SD.detach().numpy()[made.objects_OL.numpy()].sum(1)
    target, have = target - target.mean(0), have - have.mean(0)

    def likeness(a, b):
        return np.mean(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))

    # half of the power of a quantised row is meant and half is random, in the last level all is: with two levels of the
    # first kind at most 1 / sqrt(3) = 0.58, less for what two codes cannot say; other objects' titles: about 0
    assert likeness(target, have) > 0.3
    assert abs(likeness(target, np.roll(have, 11, axis=0))) < 0.25
    assert 0.5 < made.codes_SD.std() / made.words_VD.float().std() < 1.5  # as loud as words


def test_code_rows_depend_on_the_seed_alone(made):
    titles = title_ids(made.layout.words)
    vectors = centroids(titles, made.words_VD.float().numpy())
    rows = []
    for seed in (0, 0, 1):
        backbones.init_codes(made, vectors, titles, seed)
        rows.append(made.codes_SD.detach().clone())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_an_object_without_a_title_spoils_nothing(made):
    titles = title_ids(made.layout.words)
    vectors = centroids(titles, made.words_VD.float().numpy())
    titles[3] = np.zeros(0, np.int32)
    backbones.init_codes(made, vectors, titles, seed=0)
    assert bool(torch.isfinite(made.codes_SD).all())


def test_an_object_that_is_not_known_teaches_nothing(made):
    titles, known_O = title_ids(made.layout.words), np.ones(len(CODES), bool)
    known_O[3] = False
    vectors, rows = centroids(titles, made.words_VD.float().numpy()), []
    for words in (titles[3], np.array([5, 6], np.int64)):
        backbones.init_codes(made, vectors, [*titles[:3], words, *titles[4:]], 0, known_O)
        rows.append(made.codes_SD.detach().clone())
    assert torch.equal(rows[0], rows[1])


def test_a_randomised_body_has_forgotten_its_weights(made):
    was = {name: tensor.clone() for name, tensor in made.body.state_dict().items()}
    backbones.randomise(made, seed=1)
    now = made.body.state_dict()
    matrices = [name for name in was if was[name].dim() == 2]
    assert len(matrices) == 14
    for name in matrices:
        both = torch.stack([was[name].flatten(), now[name].flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2, f"{name} is as it was"
    backbones.randomise(made, seed=1)
    assert all(torch.equal(tensor, made.body.state_dict()[name]) for name, tensor in now.items())


def test_a_word_sees_only_what_stands_before_it(made):
    ids = [4, 8, 15, 16, 23, 42]
    changed = [*ids[:3], 99, 98, 97]
    torch.testing.assert_close(read(made, ids)[:3], read(made, changed)[:3], rtol=0, atol=1e-6)
    assert not torch.allclose(read(made, ids)[3:], read(made, changed)[3:])
    assert not torch.allclose(read(made, [5, *ids[1:]])[-1], read(made, ids)[-1])


def test_long_threads_are_read_block_by_block_as_in_one_piece(made, monkeypatch):
    from leadre.lm import attention

    ids = np.random.default_rng(0).integers(0, made.layout.words, 23).tolist()
    whole = read(made, ids)
    monkeypatch.setattr(attention, "CHUNK", 4)
    torch.testing.assert_close(
        read(made, ids), whole, rtol=0, atol=2e-2 if backbones.has_bfloat16(made.device) else 1e-5
    )


def test_precision_is_asked_of_the_machine():
    assert isinstance(backbones.has_bfloat16(torch.device("cpu")), bool)
    with backbones.precision(torch.device("cpu")):
        kind = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert kind == (torch.bfloat16 if backbones.has_bfloat16(torch.device("cpu")) else torch.float32)
