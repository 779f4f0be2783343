"""A stage records the files of its backbone, which may change under their name."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from leadre.__main__ import main
from leadre.lm import pretrained
from leadre.tune import sft


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A backbone that a test may change."""
    return shutil.copytree(tiny_llama, tmp_path / "llama")


def change_weights(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({name: 1.01 * tensor for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def test_identity_follows_weights_config_and_tokenizer(folder, tmp_path):
    def identity():
        return pretrained.identity(str(folder), tmp_path)["backbone_hash"]

    hashes = [identity()]
    (folder / "README.md").write_text("not read by any stage")
    assert identity() == hashes[0] == pretrained.identity(str(folder.rename(tmp_path / "b")), tmp_path)["backbone_hash"]
    folder = tmp_path / "b"
    change_weights(folder)
    hashes.append(identity())
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text((folder / name).read_text() + "\n")
        hashes.append(identity())
    save_file({}, folder / "model-00002-of-00002.safetensors")
    hashes.append(identity())
    assert len(set(hashes)) == 5


def test_packaged_model_has_no_facts_beside_its_name(tmp_path):
    assert pretrained.identity(pretrained.PACKAGED, tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_changed_weights_make_the_stage_stale_and_its_checkpoint_foreign(work, folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "r").mkdir()
    for step in ("data", "semid"):
        shutil.copytree(work / "served" / step, tmp_path / "r" / step)
    size = "--layers 0 --short-tokens 150 --long-tokens 60 --described 0 --max-steps 2 --batch-tokens 800 --threads 1"

    def tune():
        status = main(f"tune --work {tmp_path} --run r --backbone {folder} --checkpoint-s 0 {size}".split())
        return status, capsys.readouterr().err

    def meta():
        return json.loads((tmp_path / "r" / "tune-sft" / "meta.json").read_text())

    assert tune()[0] == 0
    first = meta()
    assert "is current, nothing to do" in tune()[1]
    change_weights(folder)
    with monkeypatch.context() as patch:
        patch.setattr(sft, "figures", interrupt)
        assert tune()[0] == 130
    assert (tmp_path / "r" / ".tune-sft.checkpoint" / "state.json").exists()
    capsys.readouterr()
    change_weights(folder)
    status, err = tune()
    assert status == 0 and "belongs to another config or other data" in err
    second = meta()
    assert first["config"].keys() == second["config"].keys()
    assert {name for name in first["config"] if first["config"][name] != second["config"][name]} == {"backbone_hash"}
    assert first["files"]["model.safetensors"] != second["files"]["model.safetensors"]


def interrupt(*_):
    raise KeyboardInterrupt
