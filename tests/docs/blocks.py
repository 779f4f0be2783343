"""Code blocks of a page, and the rules by which a test runs them.

A fenced block of `sh` or `python` runs as it is; `text` does not run. Comments on the lines above change that:

    <!-- block: file PATH -->         the block is written to PATH
    <!-- block: small OLD => NEW -->  OLD is replaced by NEW, so that the block takes seconds; \\n is a new line
    <!-- block: server URL -->        the block stays in the background until the page ends; URL answers before the next
    <!-- block: output -->            the combined output of the block before; `...` is any text
    <!-- block: skip REASON -->       the block does not run
    <!-- block: after SETUP -->       the block needs a setup of `pages.SETUPS` first
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

MARKER = re.compile(r"<!-- block: (\w+) ?(.*?) ?-->")
MARKERS = {"file": 1, "small": 1, "server": 1, "output": 0, "skip": 1, "after": 1}  # -> 1: needs an argument
RUNNABLE = ("sh", "python")


class PageError(Exception):
    """A block that breaks a rule; the message has page and line."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block. ``line`` is that of its fence, ``markers`` are (word, argument) in the order of the page."""

    where: str  # page:line
    line: int
    language: str
    text: str
    markers: tuple[tuple[str, str], ...]

    def argument(self, word: str) -> str | None:
        """The argument of a marker; None without the marker."""
        return next((argument for marker, argument in self.markers if marker == word), None)

    @property
    def small(self) -> str:
        """The text at reduced size. PageError if the text that a marker replaces is not there."""
        text = self.text
        for word, argument in self.markers:
            if word == "small":
                old, arrow, new = argument.partition(" => ")
                if not arrow or old not in text:
                    raise PageError(f"{self.where}: small: {old!r} is not in the block")
                text = text.replace(old, new.replace("\\n", "\n"))
        return text


def blocks_of(page: str, text: str) -> list[Block]:
    """The blocks of a page in order. PageError for a block that neither runs nor has a reason not to."""
    tokens = MarkdownIt().parse(text)
    comments = {token.map[1]: token for token in tokens if token.type == "html_block" and token.map}
    blocks = [_block(page, token, comments) for token in tokens if token.type in ("fence", "code_block")]
    if comments := {line: token for line, token in comments.items() if MARKER.search(token.content)}:
        line, token = next(iter(comments.items()))
        raise PageError(f"{page}:{line}: no block is below {token.content.strip()!r}")
    for block, before in zip(blocks, [None, *blocks], strict=False):
        _check(block, before)
    return blocks


def matches(expected: str, output: str) -> bool:
    """Whether the output is the expected text, except for spaces at the ends of lines.

    ``...`` is any text, and a line of it any number of lines.
    """
    lines = [r"(?:[^\n]*\n)*" if line == "..." else _pattern(line) + r"\n" for line in _lines(expected)]
    text = "".join(f"{line}\n" for line in _lines(output))
    return re.fullmatch("".join(lines), text, re.DOTALL) is not None


def _pattern(line: str) -> str:
    return ".*".join(map(re.escape, line.split("...")))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _block(page: str, token: Token, comments: dict[int, Token]) -> Block:
    """The block of a token with the markers above it, which are removed from ``comments``."""
    assert token.map is not None
    line = token.map[0] + 1
    where = f"{page}:{line}"
    if token.type == "code_block":
        raise PageError(f"{where}: an indented block; fence it and name its language")
    markers: list[tuple[str, str]] = []
    above = token.map[0]
    while above in comments:
        comment = comments.pop(above)
        assert comment.map is not None
        above = comment.map[0]
        markers[:0] = MARKER.findall(comment.content)
    return Block(where=where, line=line, language=token.info.strip(), text=token.content, markers=tuple(markers))


def _check(block: Block, before: Block | None) -> None:
    for word, argument in block.markers:
        if word not in MARKERS:
            raise PageError(f"{block.where}: unknown marker {word!r}; there are {', '.join(MARKERS)}")
        if MARKERS[word] and not argument:
            raise PageError(f"{block.where}: {word} needs an argument")
    words = {word for word, _ in block.markers}
    if "output" in words and (before is None or before.language not in RUNNABLE or before.argument("skip")):
        raise PageError(f"{block.where}: output, but the block before does not run")
    if block.language not in (*RUNNABLE, "text") and not words & {"file", "output", "skip"}:
        raise PageError(f"{block.where}: language {block.language!r} does not run; add a marker, or name a language")
    if block.language not in RUNNABLE and words & {"server", "after"}:
        raise PageError(f"{block.where}: language {block.language!r} does not run")
    block.small  # noqa: B018  # raises
