"""The codebook of the API is the artifact, and new objects get the IDs that `leadre semid --extend` gives them."""

import numpy as np
import pytest

import leadre
from leadre import artifact
from leadre.data import histories
from leadre.errors import ArtifactError, InputError
from leadre.semid import codebook as codebooks
from tests.api.conftest import verb


@pytest.fixture(scope="module")
def stored(folder):
    return codebooks.load(artifact.read(folder / "semid", artifact.CODEBOOK))


def test_codebook_is_the_artifact(run, folder, stored):
    for codebook in (run.codebook, leadre.load_codebook(folder / "semid")):
        assert len(codebook) == len(stored.object_ids) and codebook.version == stored.version
        for object_id, path in zip(stored.object_ids, stored.codes_OL.tolist(), strict=True):
            assert object_id in codebook and codebook.semantic_id(object_id) == tuple(path)
    assert repr(run.codebook) == f"Codebook(66 objects, codes per level 8 x 6 x 24, {stored.version})"


def test_objects_under_a_prefix(run, stored):
    paths = {
        object_id: tuple(path) for object_id, path in zip(stored.object_ids, stored.codes_OL.tolist(), strict=True)
    }
    some = next(path for path in paths.values() if path[-1] == 1)  # shares its prefix with another
    for length in range(4):
        under = run.codebook.under(some[:length])
        expected = sorted((path, object_id) for object_id, path in paths.items() if path[:length] == some[:length])
        assert under == [object_id for _, object_id in expected]
    assert len(run.codebook.under(some)) == 1 < len(run.codebook.under(some[:2]))


@pytest.fixture(scope="module")
def larger(folder, tmp_path_factory):
    """(codebook of a larger market that `semid --extend` made from the run's, that market's logs)."""
    work = tmp_path_factory.mktemp("larger")
    assert verb("data", work, "--source world --world-users 20 --world-ads 90 --world-contents 12") == 0
    encoder = artifact.read(folder / "semid", artifact.CODEBOOK).meta["config"]["encoder"]
    assert verb("semid", work, f"--encoder {encoder} --extend {folder / 'semid'}") == 0
    logs = histories.load(artifact.read(work / "served" / "data", artifact.TABLES))
    return leadre.load_codebook(work / "served" / "semid"), logs


def test_new_objects_get_the_ids_of_semid_extend(run, larger):
    extended, logs = larger
    columns = ["object_id", "title", "brand", "category_path", "description"]
    ads = logs.ads.unique("object_id", keep="first", maintain_order=True).sort("object_id").select(columns)
    codebook = run.codebook.extend(leadre.NewObject(**row) for row in ads.iter_rows(named=True))
    assert len(codebook) == len(extended) > len(run.codebook) == 66
    assert codebook.version == extended.version
    for object_id in logs.objects["object_id"]:
        assert codebook.semantic_id(object_id) == extended.semantic_id(object_id)
    rows = extended.ids.rows(codebook.ids.object_ids)
    np.testing.assert_allclose(codebook.ids.embeddings_OD, extended.ids.embeddings_OD[rows], atol=1e-5)
    assert codebook.extend([leadre.NewObject(object_id="object-0000", title="of another text")]) is codebook


def test_repeated_new_object_is_refused(run):
    twice = [leadre.NewObject(object_id="n", title="red tea")] * 2
    with pytest.raises(InputError, match="object 'n' is there twice"):
        run.codebook.extend(twice)


def test_changed_encoder_is_refused(run):
    import dataclasses

    other = dataclasses.replace(run.codebook, encoder_hash="of other weights")
    with pytest.raises(InputError, match="has changed since this codebook was made"):
        other.extend([leadre.NewObject(object_id="n", title="red tea")])


@pytest.mark.parametrize("prefix", [(8,), (-1,), (0, 6), (0, 0, 0, 0)])
def test_prefix_that_begins_no_id_is_refused(run, prefix):
    with pytest.raises(InputError, match=r"must be at most 3 codes, each at least 0 and below 8"):
        run.codebook.under(prefix)


def test_missing_ids_are_refused(run, folder):
    with pytest.raises(InputError, match=r"object 'zz' has no semantic ID; Codebook\.extend computes it"):
        run.codebook.semantic_id("zz")
    with pytest.raises(ArtifactError, match="there is no codebook artifact here"):
        leadre.load_codebook(folder / "nothing")
