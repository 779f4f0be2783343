"""The rules of code blocks, each broken once, and the runner on small pages."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from . import pages
from .blocks import PageError, blocks_of, matches


def fenced(language: str, text: str, *markers: str) -> str:
    return "".join(f"<!-- block: {marker} -->\n" for marker in markers) + f"```{language}\n{text}\n```\n\n"


def run(scratch, *blocks: str) -> None:
    for block in blocks_of("page.md", "# A page\n\n" + "".join(blocks)):
        scratch.run(block)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("text\n\n    indented\n", "page.md:3: an indented block"),
        (fenced("toml", "a = 1"), "language 'toml' does not run"),
        (fenced("", "ls"), "language '' does not run"),
        (fenced("console", "$ ls", "after world-run"), "language 'console' does not run"),
        (fenced("sh", "ls", "skipped"), "unknown marker 'skipped'"),
        (fenced("sh", "ls", "skip"), "skip needs an argument"),
        (fenced("sh", "ls", "small --steps 9 => --steps 1"), "'--steps 9' is not in the block"),
        (fenced("sh", "ls", "small ls"), "is not in the block"),
        (fenced("text", "out", "output"), "the block before does not run"),
        (fenced("sh", "ls", "skip slow") + fenced("text", "out", "output"), "the block before does not run"),
        ("<!-- block: skip it is slow -->\n\n```sh\nls\n```\n", "page.md:1: no block is below"),
        ("- item\n\n        indented in a list\n", "an indented block"),
    ],
)
def test_page_is_refused(page: str, message: str) -> None:
    with pytest.raises(PageError, match=message):
        blocks_of("page.md", page)


def test_blocks_have_their_markers_and_lines() -> None:
    page = "Text.\n\n" + fenced("sh", "run 9", "after bidder", "small 9 => 1") + fenced("text", "a tree")
    first, second = blocks_of("page.md", page)
    assert (first.where, first.language, first.small) == ("page.md:5", "sh", "run 1\n")
    assert first.markers == (("after", "bidder"), ("small", "9 => 1"))
    assert (second.language, second.markers) == ("text", ())


@pytest.mark.parametrize(
    ("expected", "output", "is_match"),
    [
        ("a\nb", "a  \nb\n", True),
        ("a ... c", "a b\nb c", True),
        ("...\nc", "a\nb\nc", True),
        ("a\n...", "a", True),
        ("...\na\n...\nd", "a\nb\nc\nd", True),
        ("a", "a\nb", False),
        ("a\n...\nb", "ab", False),
        ("a.c", "abc", False),
        ("a ... d", "a b c", False),
    ],
)
def test_output_is_compared(expected: str, output: str, is_match: bool) -> None:
    assert matches(expected, output) == is_match


def test_blocks_of_a_page_share_folder_and_exported_variables(scratch) -> None:
    run(
        scratch,
        fenced("toml", "steps = 9", "small 9 => 1", "file configs/mine.toml"),
        fenced("sh", "export COLOUR=red\ncat configs/mine.toml"),
        fenced("text", "steps = 1", "output"),
        fenced("python", "import os; print(os.environ.get('COLOUR'), open('configs/mine.toml').read())"),
        fenced("text", "None steps = 1", "output"),
        fenced("sh", "echo $COLOUR; echo problem >&2"),
        fenced("text", "red\nproblem", "output"),
        fenced("sh", "exit 1", "skip it fails"),
    )


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([fenced("sh", "false\ntrue")], "exit status 1"),
        ([fenced("sh", "false | true")], "exit status 1"),
        ([fenced("sh", "echo $MISSING_VARIABLE")], "exit status 1"),
        ([fenced("python", "print(1 / 0)")], "(?s)exit status 1.*ZeroDivisionError"),
        ([fenced("sh", "echo a"), fenced("text", "b", "output")], "(?s)page.md:8: the output differs.*a"),
        ([fenced("sh", "ls", "after nothing")], "unknown setup 'nothing'"),
        ([fenced("sh", "exit 3", "server http://127.0.0.1:8080/")], "no response of"),
    ],
)
def test_block_that_fails_fails_its_page(scratch, blocks: list[str], message: str) -> None:
    with pytest.raises(PageError, match=message):
        run(scratch, *blocks)


def test_scratch_folder_looks_like_a_checkout(scratch) -> None:
    """`make setup` has nothing to do, `leadre` and `.venv/bin/leadre` run this source, and work/ is the page's own."""
    run(
        scratch,
        fenced("sh", "make --dry-run setup; leadre --version; .venv/bin/leadre --version; ls runs/demo.sh"),
        fenced("text", "make: Nothing to be done for 'setup'.\nleadre ...\nleadre ...\nruns/demo.sh", "output"),
        fenced("sh", "leadre data --source world --show | grep source; leadre --help | head -n 1; mkdir work/demo"),
        fenced("text", "source = world\nleadre ...", "output"),
        fenced("sh", "leadre serve --show --config configs/demo.toml | grep port"),
        fenced("text", "port = 8080\nmanage_port = 8081", "output"),
    )
    assert (scratch.folder / "work" / "demo").is_dir()
    assert not (scratch.folder / "work").is_symlink()


def test_server_runs_until_the_page_ends(scratch) -> None:
    command = "echo $$ > server.pid; exec python -m http.server --bind 127.0.0.1 8080"
    run(scratch, fenced("sh", command, "server http://127.0.0.1:8080/"), fenced("sh", "curl -s localhost:8080/"))
    assert "server.pid" in scratch.output
    pid = int((scratch.folder / "server.pid").read_text())
    os.kill(pid, 0)
    scratch.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


HANGS = fenced("sh", "echo begun; mkfifo alive; sleep 99 <> alive > out 2>&1 & wait")


def has_ended(scratch) -> bool:
    """Whether the child of `HANGS` has ended: it alone holds the other end of the pipe."""
    for _ in range(300):
        try:
            os.close(os.open(scratch.folder / "alive", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return True
        time.sleep(0.1)  # until the system has ended it
    return False


def test_block_that_hangs_is_stopped_with_its_children(scratch, monkeypatch) -> None:
    monkeypatch.setattr(pages, "PATIENCE_S", 2.0)
    with pytest.raises(PageError, match=r"(?s)not done after 2 s.*begun"):
        run(scratch, HANGS)
    assert has_ended(scratch)


def test_children_of_a_block_end_with_a_test_that_is_stopped(scratch) -> None:
    """As the time limit of a test does it: a signal whose handler raises."""

    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    def send() -> None:
        while not (scratch.folder / "out").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    sender = threading.Thread(target=send, daemon=True)
    try:
        sender.start()
        with pytest.raises(Stopped):
            run(scratch, HANGS)
    finally:
        signal.signal(signal.SIGUSR1, before)
    sender.join()
    assert has_ended(scratch)
