"""Artifacts are complete or absent, describe themselves, are checked on reading, and are skipped while current."""

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from leadre import artifact
from leadre.artifact import Artifact
from leadre.config import VERBS
from leadre.errors import ArtifactError

DEAD = 2**22 + 1  # above the kernel's highest process number


def make(folder: Path, text: str = "x", *, parents: tuple[Artifact, ...] = (), **config: object) -> Artifact:
    with artifact.create(folder, kind=artifact.TABLES, config=config, seed=0, parents=parents) as temporary:
        (temporary / "part").mkdir()
        (temporary / "part" / "a.txt").write_text(text)
    return artifact.read(folder, artifact.TABLES)


def is_current(folder: Path, *, seed: int = 0, parents: tuple[Artifact, ...] = (), **config: object) -> bool:
    return artifact.current(folder, kind=artifact.TABLES, config=config, seed=seed, parents=parents)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_meta_records_kind_config_parents_and_environment(tmp_path: Path) -> None:
    parent = make(tmp_path / "run" / "data")
    written = make(tmp_path / "run" / "semid", parents=(parent,), levels=3, path=Path("logs"), sizes=(1, 2))
    assert written.meta["config"] == {"levels": 3, "path": "logs", "sizes": [1, 2]}
    assert written.meta["parents"] == {"data": parent.hash}
    # sha256 of "x", by sha256sum
    x = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert written.meta["files"] == {"part/a.txt": x}
    assert written.meta["peak_rss_mb"] > 1 and written.meta["wall_s"] >= 0
    assert written.meta["libraries"]["numpy"] and written.meta["code"]
    assert names(tmp_path / "run") == ["data", "semid"]


def test_hash_covers_content_and_not_config_or_environment(tmp_path: Path) -> None:
    first = make(tmp_path / "a", "x", seed_of=1)
    same = make(tmp_path / "b", "x")
    other = make(tmp_path / "c", "y")
    assert first.hash == same.hash != other.hash
    meta = first.meta | {"wall_s": 1e9, "libraries": {}, "code": "other", "peak_rss_mb": 0}
    assert Artifact(first.path, meta).hash == first.hash
    assert Artifact(first.path, meta | {"kind": "codebook"}).hash != first.hash
    assert Artifact(first.path, meta | {"version": 9}).hash != first.hash


def test_failure_keeps_the_old_artifact_and_no_temporary_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make(folder, "old")
    for error in (RuntimeError, KeyboardInterrupt):
        with (
            pytest.raises(error),
            artifact.create(folder, kind=artifact.TABLES, config={}, seed=0, parents=()) as temporary,
        ):
            (temporary / "half").write_text("half")
            raise error
    assert (folder / "part" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["data"]


def test_new_artifact_replaces_all_files_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make(folder, "old")
    with artifact.create(folder, kind=artifact.TABLES, config={}, seed=0, parents=()) as temporary:
        (temporary / "b.txt").write_text("new")
        assert (folder / "part" / "a.txt").read_text() == "old"
    assert names(folder) == ["b.txt", "meta.json"]
    assert names(tmp_path) == ["data"]


def test_temporary_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    code = f"""
    import pathlib, sys, time
    from leadre import artifact
    folder = pathlib.Path({str(tmp_path / "data")!r})
    with artifact.create(folder, kind=artifact.TABLES, config={{}}, seed=0, parents=()) as temporary:
        (temporary / "half").write_text("half")
        print("writing", flush=True)
        time.sleep(60)
    """
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        assert not is_current(tmp_path / "data") and len(names(tmp_path)) == 1  # a living process keeps its folder
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [f".data.tmp-{process.pid}"]
    make(tmp_path / "data")
    assert names(tmp_path) == ["data"]


def test_old_artifact_is_restored_after_a_kill_between_renames(tmp_path: Path) -> None:
    make(tmp_path / "data", "old").path.rename(tmp_path / f".data.old-{DEAD}")
    (tmp_path / f".data.tmp-{DEAD}").mkdir()
    (tmp_path / f".data-x.tmp-{DEAD}").mkdir()  # of another step
    assert is_current(tmp_path / "data")
    assert names(tmp_path) == [f".data-x.tmp-{DEAD}", "data"]


def test_leftover_folder_with_the_same_process_number_is_replaced(tmp_path: Path) -> None:
    (tmp_path / f".data.tmp-{os.getpid()}").mkdir()
    (tmp_path / f".data.tmp-{os.getpid()}" / "stale").write_text("")
    make(tmp_path / "data")
    assert names(tmp_path / "data") == ["meta.json", "part"]


def test_folder_that_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")  # an empty folder holds no data of the user
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="not an artifact"):
        make(tmp_path / "notes")
    assert names(tmp_path / "notes") == ["thesis.txt"]


def test_read_checks_kind_version_and_hashes_and_names_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "first" / "data"
    with pytest.raises(ArtifactError, match="no tables artifact here; run `leadre data --run first`"):
        artifact.read(folder, artifact.TABLES)
    written = make(folder)
    for kind in (artifact.CODEBOOK, artifact.Kind("tables", 9)):
        with pytest.raises(ArtifactError, match="holds 'tables' version 3, not"):
            artifact.read(folder, kind)
    (folder / "part" / "a.txt").write_text("y")
    with pytest.raises(ArtifactError, match=r"part/a\.txt is missing or has changed"):
        artifact.read(folder, artifact.TABLES)
    (folder / "part" / "a.txt").unlink()
    assert not is_current(folder)
    for meta in ("{", "[]", '{"kind": "tables"}', json.dumps(written.meta | {"files": 3})):
        (folder / "meta.json").write_text(meta)
        with pytest.raises(ArtifactError, match=r"meta\.json cannot be read"):
            artifact.read(folder, artifact.TABLES)


def test_current_depends_on_kind_config_seed_and_parents(tmp_path: Path) -> None:
    parent = make(tmp_path / "p1" / "data", "1")
    other = make(tmp_path / "p2" / "data", "2")
    folder = tmp_path / "run" / "semid"
    assert not is_current(folder)
    config: dict[str, Any] = {"levels": 3, "sizes": (1, 2), "path": Path("logs"), "work": Path("work"), "run": "a"}
    make(folder, parents=(parent,), **config)
    assert is_current(folder, parents=(parent,), **config)
    elsewhere = config | {"work": Path("elsewhere"), "run": "b", "threads": 2}
    assert is_current(folder, parents=(parent,), **elsewhere)
    assert not is_current(folder, parents=(parent,), **(config | {"levels": 4}))
    assert not is_current(folder, parents=(parent,), **(config | {"new": None}))
    assert not is_current(folder, parents=(parent,), seed=1, **config)
    assert not is_current(folder, parents=(other,), **config)
    assert not is_current(folder, **config)
    assert not artifact.current(folder, kind=artifact.Kind("tables", 9), config=config, seed=0, parents=(parent,))


def test_an_older_version_is_read_and_current_if_its_files_mean_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "semid"
    make(folder)
    for version, also_read, is_read in ((4, 3, True), (4, 2, False), (4, None, False), (2, None, False)):
        kind = artifact.Kind("tables", version, also_read)
        assert artifact.current(folder, kind=kind, config={}, seed=0, parents=()) == is_read, kind


def test_read_refuses_any_flipped_bit(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make(folder, "some words", layers=6, positive="conversion")
    for path in (folder / "meta.json", folder / "part" / "a.txt"):
        original = path.read_bytes()
        for bit in range(0, 8 * len(original), 5):
            flipped = bytearray(original)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(ArtifactError, match="run `leadre data"):
                artifact.read(folder, artifact.TABLES)
        path.write_bytes(original)
    artifact.read(folder, artifact.TABLES)


def test_artifact_of_the_first_release_is_read(tmp_path: Path) -> None:
    meta = make(tmp_path / "data").meta
    del meta["meta_sha256"]
    (tmp_path / "data" / "meta.json").write_text(json.dumps(meta))
    assert artifact.read(tmp_path / "data", artifact.TABLES).meta == meta
    (tmp_path / "data" / "meta.json").write_text(json.dumps(meta | {"meta_sha257": ""}))
    with pytest.raises(ArtifactError, match=r"meta\.json has changed"):
        artifact.read(tmp_path / "data", artifact.TABLES)


def test_stage_that_writes_meta_json_fails_an_assertion(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"meta\.json"),
        artifact.create(tmp_path / "data", kind=artifact.TABLES, config={}, seed=0, parents=()) as temporary,
    ):
        (temporary / "meta.json").write_text("{}")
    assert names(tmp_path) == []


# The default config of every command as release 0.1.0 recorded it. Add an option here when you add it to a stage.
RECORDED = json.loads((Path(__file__).parent / "golden" / "recorded_configs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("section", VERBS)
def test_artifacts_of_the_last_release_are_still_current(section: str, tmp_path: Path) -> None:
    recorded = RECORDED[section]
    with artifact.create(tmp_path / "a", kind=artifact.TABLES, config=recorded, seed=0, parents=()) as temporary:
        (temporary / "a.txt").write_text("x")
    defaults = importlib.import_module(VERBS[section]).Config().flat()
    output = artifact.Output(folder=tmp_path / "a", kind=artifact.TABLES, config=defaults, seed=0, parents=())
    assert output.is_current()
    assert artifact.resume_key(defaults, ()) == artifact.resume_key(recorded, ())


def test_stage_skips_only_a_current_output_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def output(levels: int) -> artifact.Output:
        config = {"levels": levels}
        return artifact.Output(folder=tmp_path / "a", kind=artifact.TABLES, config=config, seed=0, parents=())

    assert not output(3).skip("data")
    with output(3).create() as temporary:
        (temporary / "a.txt").write_text("x")
    assert capsys.readouterr().err == ""
    assert output(3).skip("data") and not output(4).skip("data")
    assert capsys.readouterr().err == f"data: {tmp_path / 'a'} is current, nothing to do\n"
