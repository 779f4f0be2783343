"""Set-up of a bidder's process, before it imports its own code."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from leadre import stderr

NICE = 10  # of what may be late, as the table writer and an erasure: bids and bookings come first
METRIC_FILES = ("counter", "histogram", "gauge_livemax")  # names of `prometheus_client`, for the kinds of `telemetry`
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")  # read when numpy is imported
METRIC_BYTES = 256 << 10  # about 2,500 series of a kind; the library doubles the file beyond


def set_up() -> None:
    """Make the process a group of its own, named for `ps` and `top`, which ends when its supervisor has ended.

    No message of it waits for the reader of its stderr.
    """
    stderr.decouple(_count_dropped_text)
    os.setpgrp()
    with contextlib.suppress(OSError):  # systems other than Linux have no /proc
        Path("/proc/self/comm").write_text(f"leadre {multiprocessing.current_process().name}"[:15])
    _allocate_metrics()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with_parent, args=(parent.join,), daemon=True).start()


def use_one_blas_thread() -> None:
    """Let numpy compute in the thread that calls it, unless the environment has another number of threads.

    A worker solves systems of a few dozen unknowns. Threads of BLAS that wait for these keep every core busy.
    """
    assert "numpy" not in sys.modules, "numpy has started its threads"
    for name in BLAS_THREADS:
        os.environ.setdefault(name, "1")


def _count_dropped_text() -> None:
    from leadre import telemetry  # its import wants the files of `_allocate_metrics`

    telemetry.STDERR_DROPPED.inc()


def _allocate_metrics() -> None:
    """Allocate the files that `prometheus_client` maps for this process, before `leadre.telemetry` is imported.

    The library only sets their size: on a full disk, counting would be a SIGBUS, which ends the process. Without room
    for them the process counts in memory, where `/metrics` does not see it.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None or not hasattr(os, "posix_fallocate"):  # macOS has none
        return
    try:
        for kind in METRIC_FILES:
            path = Path(folder, f"{kind}_{os.getpid()}.db")
            unfinished = path.with_suffix(".new")  # all processes read every file whose name ends with .db
            file = os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(file, 0, METRIC_BYTES)
                unfinished.replace(path)
            finally:
                os.close(file)
                unfinished.unlink(missing_ok=True)
    except OSError:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]


def _end_with_parent(wait_for_parent: Callable[[], None]) -> None:
    wait_for_parent()
    os.kill(os.getpid(), signal.SIGTERM)
