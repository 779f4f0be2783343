"""Published versions of a ranker: the current one, the ones before it, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from leadre import artifact
from leadre.errors import ArtifactError, InputError
from leadre.serve.rankers.published import KEPT, NONE, PublishedRankers, version_of


@pytest.fixture(scope="module")
def pair(ranked_work):
    run = ranked_work / "served"
    return (
        artifact.read(run / "rank-train", artifact.RANKER),
        artifact.read(run / "rank-calibrate", artifact.CALIBRATION),
    )


@pytest.fixture
def rankers(tmp_path):
    return PublishedRankers(tmp_path / "rankers")


def recalibrated(pair, folder, slope):
    """The same ranker with another calibration."""
    with artifact.create(folder, kind=artifact.CALIBRATION, config={}, seed=0, parents=[pair[0]]) as temporary:
        (temporary / "calibration.json").write_text(json.dumps({"slope": slope, "intercept_S": [0.0, 0.0]}))
    return artifact.read(folder, artifact.CALIBRATION)


def test_a_published_ranker_is_current_and_loads_without_the_run(pair, rankers):
    assert rankers.current() == NONE
    version = rankers.publish(*pair, [])
    assert rankers.current() == version == version_of(*pair)
    model, calibration = rankers.load(version)
    assert model.spec.rows == "shown" and calibration.slope > 0
    assert rankers.publish(*pair, []) == version and rankers.history() == [version]


def test_rollback_and_switch(pair, rankers, tmp_path):
    first = rankers.publish(*pair, [])
    second = rankers.publish(pair[0], recalibrated(pair, tmp_path / "other", 2.0), [])
    assert rankers.load(second)[1].slope == 2.0
    assert rankers.rollback() == first == rankers.current()
    with pytest.raises(InputError, match="nothing to roll back to"):
        rankers.rollback()
    rankers.switch(NONE)
    assert rankers.current() == NONE
    assert rankers.rollback() == first
    with pytest.raises(InputError, match=f"no ranker of version 'x', only {first}"):
        rankers.switch("x")


def test_old_versions_are_deleted(pair, rankers, tmp_path):
    versions = [rankers.publish(pair[0], recalibrated(pair, tmp_path / f"c{n}", 1.0 + n), []) for n in range(KEPT + 2)]
    folders = {path.name for path in rankers.folder.iterdir() if path.is_dir()}
    assert rankers.history() == versions[-KEPT:] and folders == set(versions[-KEPT:])


def test_a_calibration_of_another_ranker_is_refused(pair, rankers, tmp_path):
    with artifact.create(tmp_path / "other", kind=artifact.RANKER, config={}, seed=0, parents=[]) as temporary:
        (temporary / "spec.json").write_text("{}")
    with pytest.raises(InputError, match=r"calibrates another ranker .* run `leadre rank calibrate` again"):
        rankers.publish(artifact.read(tmp_path / "other", artifact.RANKER), pair[1], [])
    assert not rankers.folder.exists()


def test_a_ranker_of_other_tables_is_refused_and_the_old_one_stays(pair, rankers, tmp_path):
    old = rankers.publish(pair[0], recalibrated(pair, tmp_path / "c", 3.0), [])
    with pytest.raises(InputError, match="none of the 2 in the catalogue; it was trained on other tables"):
        rankers.publish(*pair, ["a", "b"])
    assert rankers.current() == old and [p.name for p in rankers.folder.iterdir() if p.is_dir()] == [old]


@pytest.mark.parametrize("file", ["ranker/trees.txt", "ranker/weights.safetensors", "calibration/calibration.json"])
def test_truncated_and_missing_files_are_named(pair, rankers, file, tmp_path):
    version = rankers.publish(*pair, [])
    path = rankers.folder / version / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=f"{file} is missing or has changed"):
        rankers.load(version)
    other = rankers.publish(pair[0], recalibrated(pair, tmp_path / "c", 3.0), [])
    with pytest.raises(ArtifactError, match=file):
        rankers.rollback()
    assert rankers.current() == other
    assert rankers.publish(*pair, []) == version and rankers.load(version)  # written again
    path.unlink()
    with pytest.raises(ArtifactError, match=file):
        rankers.load(version)
    shutil.rmtree(rankers.folder / version)
    with pytest.raises(ArtifactError):
        rankers.load(version)


def test_a_damaged_name_of_the_current_version_is_an_error(pair, rankers):
    rankers.publish(*pair, [])
    (rankers.folder / "current.json").write_text('["a"')
    with pytest.raises(InputError, match=r"current\.json: damaged .* publish a ranker again"):
        rankers.current()
