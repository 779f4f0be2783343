"""map_shards: one contract for every backend, and errors that name the shard."""

import os
import time
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from leadre.errors import InputError, ShardError
from leadre.scale import Backend, map_shards

HERE: tuple[Backend, ...] = ("serial", "processes")


def size(shard: Path) -> int:
    return len(shard.read_text())


def scaled(factor: int, shard: str) -> int:
    return factor * int(shard)


def die(shard: str) -> int:
    if shard == "b":
        os._exit(9)  # as the kernel does when memory runs out
    return 1


def wait_or_die(shard: Path) -> int:
    time.sleep(30 if shard.stem == "a" else 2)  # both are running when one dies
    shard.touch()
    return die(shard.stem)


def fail_or_mark(shard: Path) -> None:
    assert shard.stem != "0"
    time.sleep(0.2)
    shard.touch()


def backends() -> list[Backend]:
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        return [*HERE]
    return [*HERE, "ray"]


@pytest.mark.parametrize("backend", backends())
def test_results_are_in_shard_order(tmp_path: Path, backend: Backend) -> None:
    shards = [tmp_path / f"{count}.txt" for count in (3, 1, 4, 1 + 4)]
    for shard in shards:
        shard.write_text("x" * int(shard.stem))
    assert map_shards(size, shards, 2, backend) == [3, 1, 4, 5]
    assert map_shards(size, [], 2, backend) == []
    assert map_shards(partial(scaled, 10), ["2", "1"], 2, backend) == [20, 10]


def test_death_of_the_last_started_worker_is_detected_while_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = SpawnProcess.start

    def slowly(process: SpawnProcess) -> None:
        start(process)
        time.sleep(0.5)  # the pool's thread checks its workers now; this one is not registered yet

    monkeypatch.setattr(SpawnProcess, "start", slowly)
    with pytest.raises(ShardError, match="a worker process died"):
        map_shards(wait_or_die, [tmp_path / "a", tmp_path / "b"], 2)
    assert [path.name for path in tmp_path.iterdir()] == ["b"], "the other worker was still running"


@pytest.mark.parametrize("backend", backends())
def test_error_names_its_shard_and_keeps_its_cause(tmp_path: Path, backend: Backend) -> None:
    good = tmp_path / "good.txt"
    bad = tmp_path / "bad.txt"
    good.write_text("x")
    with pytest.raises(ShardError, match=r"bad\.txt: FileNotFoundError") as caught:
        map_shards(size, [good, bad, good], 2, backend)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("backend", backends())
def test_no_shard_is_started_after_an_error(tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(ShardError, match=r"shard .*0: AssertionError"):
        map_shards(fail_or_mark, [tmp_path / str(index) for index in range(8)], 2, backend)
    assert len(list(tmp_path.iterdir())) < 6  # the pool keeps workers + 1 shards under way


def test_dead_worker_names_the_shards_that_may_have_killed_it() -> None:
    with pytest.raises(ShardError, match=r"died at one of b; .*fewer workers"):
        map_shards(die, ["b"], 1)


@pytest.mark.parametrize("backend", HERE)
def test_function_that_cannot_be_imported_is_refused(backend: Backend) -> None:
    with pytest.raises(AssertionError, match="cannot import it"):
        map_shards(lambda shard: shard, ["a"], 1, backend)


def test_wrong_settings_raise_input_error() -> None:
    with pytest.raises(InputError, match="at least 1"):
        map_shards(size, [], 0)
    if "ray" not in backends():
        with pytest.raises(InputError, match=r"leadre\[scale\]"):
            map_shards(size, [], 1, "ray")


def test_worker_that_dies_before_every_shard_is_submitted_is_an_error_with_its_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit = ProcessPoolExecutor.submit

    def submit_and_see_it_die(pool, fn, *shards):
        future = submit(pool, fn, *shards)
        if shards == ("b",):
            wait([future])
        return future

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_and_see_it_die)
    with pytest.raises(ShardError, match="a worker process died at one of b; often memory"):
        map_shards(die, ["b", "c", "d"], 1)
