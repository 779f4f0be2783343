"""One function over many shards: in this process, in several, or on a Ray cluster. The only file that imports ray."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from leadre import extras
from leadre.errors import InputError, ShardError

Backend = Literal["serial", "processes", "ray"]
S = TypeVar("S", str, Path)
R = TypeVar("R")


def map_shards(fn: Callable[[S], R], shards: Sequence[S], workers: int, backend: Backend = "processes") -> list[R]:
    """``[fn(shard) for shard in shards]``: the results in the order of the shards, at most ``workers`` at a time.

    ``fn`` is a top-level function (or a ``functools.partial`` of one) of a shard's path; it writes its data beside the
    shard and returns a small summary. After a failure no further shard is started. Raises ShardError, which names the
    failed shard and has its error as cause; InputError for ``workers`` under 1 or a missing ray.
    """
    plain = fn.func if isinstance(fn, partial) else fn
    name = getattr(plain, "__qualname__", repr(plain))
    assert "<" not in name, f"{name} lives inside a function: another process cannot import it"
    if workers < 1:
        raise InputError(f"workers = {workers}: give at least 1")
    return BACKENDS[backend](fn, shards, workers)


def _serial(fn: Callable[[S], R], shards: Sequence[S], workers: int) -> list[R]:
    results = []
    for shard in shards:
        try:
            results.append(fn(shard))
        except Exception as error:  # any error of a caller's function gets its shard's name; the cause is kept
            raise _failed(shard, error) from error
    return results


def _processes(fn: Callable[[S], R], shards: Sequence[S], workers: int) -> list[R]:
    if not shards:
        return []
    # spawn, not fork: a fork copies the locks that polars', torch's and faiss's threads hold, and then waits on them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(workers, len(shards)), mp_context=context) as pool:
        futures = []
        with suppress(BrokenProcessPool):  # a worker died meanwhile: the shards without a future are lost with it
            for shard in shards:
                futures.append(pool.submit(fn, shard))
            # CPython 3.11: `submit` wakes the pool's watching thread before it starts a worker, so that thread does not
            # watch the last worker, and its death would hang the run. One more task, which starts no worker, fixes it.
            pool.submit(int)
        wait(futures, return_when=FIRST_EXCEPTION)
        pool.shutdown(wait=True, cancel_futures=True)
    lost = []
    for shard, future in zip(shards, futures, strict=False):
        error = None if future.cancelled() else future.exception()
        if isinstance(error, BrokenProcessPool):
            lost.append(str(shard))
        elif error is not None:
            raise _failed(shard, error) from error
    lost += map(str, shards[len(futures) :])
    if lost:
        suspects = ", ".join(lost[:workers])  # shards start in order, so these were the ones under way
        raise ShardError(f"a worker process died at one of {suspects}; often memory ran out: try fewer workers")
    return [future.result() for future in futures]


def _ray(fn: Callable[[S], R], shards: Sequence[S], workers: int) -> list[R]:
    extras.require("backend 'ray'", "scale")
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # RAY_ADDRESS names a cluster; without it, one starts on this machine
    remote = ray.remote(_call)
    results: list[Any] = [None] * len(shards)
    running: dict[Any, int] = {}
    for index, shard in enumerate(shards):
        if len(running) == workers:
            _ray_collect(ray, shards, running, results)
        running[remote.remote(fn, shard)] = index
    while running:
        _ray_collect(ray, shards, running, results)
    return results


def _call(fn: Callable[[S], R], shard: S) -> R:
    return fn(shard)  # ray takes plain functions only, so a partial is passed as an argument


def _ray_collect(ray: Any, shards: Sequence[S], running: dict[Any, int], results: list[Any]) -> None:
    """Wait for the next shard to finish; remove it from ``running`` and store its result in ``results``."""
    (ready, *_), _ = ray.wait(list(running), num_returns=1)
    index = running.pop(ready)
    try:
        results[index] = ray.get(ready)
    except Exception as error:  # as in _serial
        for other in running:
            ray.cancel(other)
        cause = getattr(error, "cause", None) or error  # ray wraps what the function raised
        raise _failed(shards[index], cause) from cause


def _failed(shard: S, error: BaseException) -> ShardError:
    return ShardError(f"shard {shard}: {type(error).__name__}: {error}")


BACKENDS: dict[str, Callable[..., list[Any]]] = {"serial": _serial, "processes": _processes, "ray": _ray}
