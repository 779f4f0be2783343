"""Progress of a running stage on stderr: bars in a terminal, a line every eight seconds in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console

from leadre.redact import redact
from leadre.units import S_PER_HOUR, S_PER_MINUTE

LOG_EVERY_S = 8.0  # without a terminal: often enough to see life, seldom enough to read the log
SILENCE_S = 10.0  # after which `sign_of_life` prints a line
LOOK_EVERY_S = 0.5  # how often `alive` looks for silence
LOG_FIRST_S = 2.0  # the first estimate comes earlier

T = TypeVar("T")


class Advance(Protocol):
    """``n`` more are done; ``note`` is a short status, such as a loss, and stays until the next one."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


class _Console(Console):
    """A console that drops its lines once nothing reads them. Rich would exit the process or end the calling thread."""

    said_s = time.monotonic()  # when `say` printed the last line

    def on_broken_pipe(self) -> None:
        self.quiet = True


console = _Console(stderr=True)


def say(text: str) -> None:
    """Print one line: ``[brackets]`` are text and not markup, long lines are not wrapped, passwords are hidden."""
    console.said_s = time.monotonic()
    console.print(redact(text), markup=False, highlight=False, soft_wrap=True)


def sign_of_life(text: str) -> None:
    """Print one line if none was printed for ten seconds; nothing in a terminal, whose bars show that time passes."""
    if not console.is_terminal and time.monotonic() - console.said_s >= SILENCE_S:
        say(f"{text}, nothing new for {duration(time.monotonic() - console.said_s)}")


@contextmanager
def alive(text: str) -> Iterator[None]:
    """Meanwhile print ``text`` when nothing else was printed for ten seconds, such as in one long call of a library."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_EVERY_S):
            sign_of_life(text)

    console.said_s = time.monotonic()
    thread = threading.Thread(target=look, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def silenced() -> Iterator[None]:
    """Print nothing meanwhile: for a trial whose messages concern no result."""
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before


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
        widgets.TextColumn("{task.fields[left]}", markup=False),
        widgets.TextColumn("{task.fields[note]}", markup=False),
    )
    with widgets.Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, completed=already, left="", note="")
        started_s = time.monotonic()
        done = already

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal done
            done += n
            left = _left(done - already, total - done, time.monotonic() - started_s)
            if note:
                progress.update(task, advance=n, left=left, note=note)
            else:
                progress.update(task, advance=n, left=left)

        yield advance


@contextmanager
def _track_log(label: str, total: int, already: int) -> Iterator[Advance]:
    started_s = time.monotonic()
    next_s = started_s + LOG_FIRST_S
    done = already
    status = ""

    def line(now_s: float) -> str:
        left = _left(done - already, total - done, now_s - started_s)
        parts = (f"{label}: {done:,} of {total:,}", duration(now_s - started_s), left, status)
        return ", ".join(filter(None, parts))

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, status, next_s
        done += n
        status = note or status
        now_s = time.monotonic()
        if now_s >= next_s and (done > already or now_s - started_s >= LOG_EVERY_S):
            next_s = now_s + LOG_EVERY_S
            say(line(now_s))

    say(f"{label}: {total - already:,} to do")
    yield advance
    say(f"{label}: {done - already:,} done in {time.monotonic() - started_s:.1f} s" + (f", {status}" if status else ""))


def duration(seconds: float) -> str:
    """A duration in its two largest units at most: 45 s, 2 min 49 s, 3 h 5 min."""
    whole = max(0, round(seconds))
    if whole < S_PER_MINUTE:
        return f"{whole} s"
    if whole < S_PER_HOUR:
        return f"{whole // S_PER_MINUTE} min {whole % S_PER_MINUTE} s"
    return f"{whole // S_PER_HOUR} h {whole % S_PER_HOUR // S_PER_MINUTE} min"


def _left(done: int, to_do: int, elapsed_s: float) -> str:
    """The time that the rest takes at the speed so far; "" while nothing is done."""
    return f"about {duration(max(to_do, 0) * elapsed_s / done)} left" if done > 0 else ""
