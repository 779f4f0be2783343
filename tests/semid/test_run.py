"""The stage from a data artifact to a codebook with its report, on the synthetic market."""

import json

import numpy as np
import pytest

from leadre import artifact
from leadre.data import histories
from leadre.data import run as data_stage
from leadre.errors import InputError
from leadre.semid import codebook as codebooks
from leadre.semid import report
from leadre.semid import run as semid_stage


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    data_stage.run(data_stage.Config(source="world", work=folder, run="w", world_users=40, world_ads=40))
    return folder


@pytest.fixture
def options(work, tiny_encoder):
    return {"work": work, "run": "w", "encoder": str(tiny_encoder), "levels": (8, 4), "collisions": 16}


def read(folder):
    return artifact.read(folder, artifact.CODEBOOK)


def test_makes_a_codebook_once_and_the_same_bytes_again(work, options, capsys):
    config = semid_stage.Config(**options)
    semid_stage.run(config)
    first = read(work / "w" / "semid")
    book = codebooks.load(first)
    logs = histories.load(artifact.read(work / "w" / "data", artifact.TABLES))
    assert book.object_ids == tuple(logs.objects["object_id"].to_list())
    assert book.sizes == (8, 4, 16)
    assert len(np.unique(book.codes_OL, axis=0)) == len(book.object_ids)
    capsys.readouterr()
    semid_stage.run(config)
    assert "is current, nothing to do" in capsys.readouterr().err
    (work / "w" / "semid" / "meta.json").write_text("{}")
    semid_stage.run(config)
    assert read(work / "w" / "semid").hash == first.hash


def test_the_report_can_be_read(work, options):
    semid_stage.run(semid_stage.Config(**options))
    folder = work / "w" / "semid"
    facts = json.loads((folder / "report.json").read_text())
    assert len(facts["levels"]) == 2 and len(facts["examples"]) == 10
    page = (folder / "report.md").read_text()
    assert all(report._words(example["title"]) in page for example in facts["examples"])
    assert (folder / "usage.png").read_bytes().startswith(b"\x89PNG")


def test_extend_keeps_every_old_id_and_adds_the_new_objects(work, options):
    semid_stage.run(semid_stage.Config(**options))
    old = codebooks.load(read(work / "w" / "semid"))
    data_stage.run(data_stage.Config(source="world", work=work, run="more", world_users=40, world_ads=60))
    semid_stage.run(semid_stage.Config(**options | {"run": "more", "extend": work / "w" / "semid"}))
    new = codebooks.load(read(work / "more" / "semid"))
    assert len(new.object_ids) > len(old.object_ids)
    assert new.object_ids[: len(old.object_ids)] == old.object_ids
    assert np.array_equal(new.codes_OL[: len(old.codes_OL)], old.codes_OL)
    assert new.quantiser.version == old.quantiser.version


def test_extend_refuses_its_own_folder_and_another_encoder(work, options, tiny_encoder, tmp_path):
    import shutil

    semid_stage.run(semid_stage.Config(**options))
    with pytest.raises(InputError, match="is the folder that this run writes"):
        semid_stage.run(semid_stage.Config(**options | {"extend": work / "w" / "semid"}))
    other = shutil.copytree(tiny_encoder, tmp_path / "other")
    (other / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    data_stage.run(data_stage.Config(source="world", work=work, run="third", world_users=40, world_ads=40))
    with pytest.raises(InputError, match="extend it with the same"):
        semid_stage.run(
            semid_stage.Config(**options | {"run": "third", "encoder": str(other), "extend": work / "w" / "semid"})
        )


def test_collaborative_columns_come_beside_the_text(work, options):
    semid_stage.run(semid_stage.Config(**options | {"collaborative": 0.5, "collaborative_dim": 6}))
    book = codebooks.load(read(work / "w" / "semid"))
    assert (book.text_width, book.embeddings_OD.shape[1]) == (16, 22)
    length = np.linalg.norm(book.embeddings_OD[:, 16:], axis=1)
    assert np.all(np.isclose(length, 0.5, atol=1e-5) | (length == 0))
    grown = book.encode(book.embeddings_OD[:1, :16], ["never seen"])
    assert not grown.embeddings_OD[-1, 16:].any() and book.complete(book.embeddings_OD[:1, :16])[0, 16:].any()
    with pytest.raises(InputError, match="collaborative: must be at least 0"):
        semid_stage.run(semid_stage.Config(**options | {"collaborative": -1.0}))


def test_rqvae_by_flag(work, options, monkeypatch):
    from leadre.semid import rqvae

    quick = {"hidden": 8, "latent": 4, "steps": 20}
    full = rqvae.fit
    monkeypatch.setattr(rqvae, "fit", lambda vectors, sizes, seed: full(vectors, sizes, seed, **quick))
    semid_stage.run(semid_stage.Config(**options | {"quantiser": "rqvae"}))
    assert len(codebooks.load(read(work / "w" / "semid")).quantiser.encoder) == 2


def test_figures_by_hand():
    from leadre.semid.quantiser import Quantiser

    quantiser = Quantiser(centroids=(np.array([[0.0], [4.0], [100.0]], np.float32),))
    book = codebooks.fit(list("abcd"), np.array([[0.0], [1.0], [4.0], [3.0]], np.float32), quantiser, 3, 1)
    facts = report.measure(book)
    (level,) = facts["levels"]
    assert (level["codes_used"], level["entropy_bits"], level["perplexity"]) == (2, 1.0, 2.0)
    assert (level["largest_code"], level["single_object_codes"]) == (2, 0)
    assert (level["paths"], level["sharing_share"], level["collision_share"], level["largest_group"]) == (2, 1, 0.5, 2)
    # squared errors 0, 1, 0, 1; about the mean 2: 4, 1, 4, 1
    assert level["error_share"] == 0.2
    assert facts["slots_used"] == 2


def test_neighbours_share_the_longest_prefix_first():
    from leadre.semid.quantiser import Quantiser

    levels = np.array([[0.0], [10.0]], np.float32), np.array([[0.0], [3.0]], np.float32)
    vectors = np.array([[0.0], [0.1], [3.0], [10.0]], np.float32)
    book = codebooks.fit(list("abcd"), vectors, Quantiser(centroids=levels), 4, 1)
    first = report.examples(book, ["A", "B", "C", "D"], seed=0)[0]
    assert (first["title"], [(n["title"], n["levels_shared"]) for n in first["neighbours"]]) == (
        "A",
        [("B", 2), ("C", 1), ("D", 0)],
    )
