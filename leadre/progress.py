"""Progress of a running stage on stderr: bars in a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console

LOG_EVERY_S = 10.0  # without a terminal: often enough to see life, seldom enough to read the log

T = TypeVar("T")


class Advance(Protocol):
    """``n`` more are done; ``note`` is a short status, such as a loss, and stays until the next one."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


class _Console(Console):
    """A console that drops its lines once nothing reads them. Rich would exit the process or end the calling thread."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


console = _Console(stderr=True)


def say(text: str) -> None:
    """Print one line verbatim: ``[brackets]`` are text and not markup, long lines are not wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def bar(iterable: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items of ``iterable`` and show the progress; ``total`` is its length."""
    with track(label, total) as advance:
        for item in iterable:
            yield item
            advance(1)


@contextmanager
def track(label: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Yield ``advance(n=1, note="")``: ``n`` more of ``total`` are done. ``done`` were done by an earlier process."""
    shown = _track_terminal(label, total, done) if console.is_terminal else _track_log(label, total, done)
    with shown as advance:
        yield advance


@contextmanager
def _track_terminal(label: str, total: int, already: int) -> Iterator[Advance]:
    from rich import progress as widgets  # costs 50 ms, which a log does not need

    columns = (
        widgets.TextColumn("{task.description}", markup=False),
        widgets.BarColumn(),
        widgets.MofNCompleteColumn(),
        widgets.TimeElapsedColumn(),
        widgets.TimeRemainingColumn(),
        widgets.TextColumn("{task.fields[note]}", markup=False),
    )
    with widgets.Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, completed=already, note="")

        def advance(n: int = 1, note: str = "") -> None:
            if note:
                progress.update(task, advance=n, note=note)
            else:
                progress.update(task, advance=n)

        yield advance


@contextmanager
def _track_log(label: str, total: int, already: int) -> Iterator[Advance]:
    started_s = last_s = time.monotonic()
    done = already
    status = ""

    def line(now_s: float) -> str:
        rate = (done - already) / max(now_s - started_s, 1e-9)
        left = f", {max(total - done, 0) / rate:.0f} s left" if rate else ""
        return f"{label}: {done:,} of {total:,}, {now_s - started_s:.0f} s{left}" + (f", {status}" if status else "")

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, status, last_s
        done += n
        status = note or status
        now_s = time.monotonic()
        if now_s - last_s >= LOG_EVERY_S:
            last_s = now_s
            say(line(now_s))

    say(f"{label}: {total - already:,} to do")
    yield advance
    say(f"{label}: {done - already:,} done in {time.monotonic() - started_s:.1f} s" + (f", {status}" if status else ""))
