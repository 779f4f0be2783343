"""The language rules of the project as far as a machine can check them: subject first, the field's nouns, no riddles.

A line that needs a word of the list (a quotation, a user's text) ends with ``# language: ok, REASON``.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("leadre", "tests", "bench", "clients", "docs")
CODE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
CODE = [path for path in CODE if "node_modules" not in path.parts]
PAGES = [path for folder in (".", "bench", "clients/prebid") for path in sorted((ROOT / folder).glob("*.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PAGES = [path for path in PAGES if path.name != "LOG.md"]

# A sentence that begins with a noun clause names no subject.
RIDDLE = re.compile(r"(?:^|[.!?:;]\s+|\n\s*\n\s*)(What|Who|Whoever|Whatever|Whichever|Where)\b(?![^.?!]*\?)")
# Verbs of speech and movement for parts that store, return, request, convert or send; pronouns for a part with a name.
DIALECT = re.compile(
    r"\b(stands|says|tells|asks|becomes|goes|whoever|whatever|anew|nobody|nobody's|somebody|anybody|lest)\b", re.I
)
NAMES = {"found", "told", "made", "given", "wanted", "mine", "one", "each", "asked", "whose"}
TEST_NAME = re.compile(
    r"^test_(what|who|whoever|where)_|_(nobody|whoever|whatever|somebody|anybody|stands|tells|says|goes)(_|$)"
)
OLD_LIMIT = re.compile(r"^_?(MOST|LEAST)_")
WAIVER = "# language: ok, "


def sentences(text: str, line: int) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) in a docstring, a comment or a page; text in backticks and quotes does not count."""
    plain = re.sub(r"``.*?``|`[^`\n]*`|\"[^\"\n]*\"", lambda match: "x" * len(match.group()), text)
    for pattern, why in ((RIDDLE, "begins a sentence with a noun clause"), (DIALECT, "use the field's verb or noun")):
        for match in pattern.finditer(plain):
            group = match.lastindex or 0
            yield line + plain.count("\n", 0, match.start(group)), f"{match.group(group)!r}: {why}"


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            statement = node.body[0]
            yield statement.lineno, str(ast.get_docstring(node, clean=False))


def comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#! ")


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name
            if TEST_NAME.search(name):
                yield node.lineno, f"{name}: name the test for what it checks"
        else:
            continue
        line = node.lineno
        if name in NAMES:
            yield line, f"{name!r}: name the noun that it holds"
        if OLD_LIMIT.match(name):
            yield line, f"{name}: a limit is MAX_ or MIN_"


def squeezed(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Several statements in one tuple assignment; constants and swaps are fine."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)):
            continue
        if not isinstance(node.value, ast.Tuple):
            continue
        targets = {ast.unparse(part) for part in node.targets[0].elts}
        values = [part.operand if isinstance(part, ast.UnaryOp) else part for part in node.value.elts]
        is_swap = targets & {ast.unparse(part) for part in node.value.elts}
        if not is_swap and not all(isinstance(part, ast.Constant) for part in values):
            yield node.lineno, "several statements in one assignment: one a line"


def faults(source: str) -> list[tuple[int, str]]:
    """(line, what is wrong) of a Python file, in order."""
    tree = ast.parse(source)
    texts = [*docstrings(tree), *comments(source)]
    rows = [fault for line, text in texts for fault in sentences(text, line)]
    rows += [*names(tree), *squeezed(tree)]
    lines = source.splitlines()
    return sorted(row for row in rows if WAIVER not in lines[row[0] - 1])


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_keeps_the_language_rules(path: Path) -> None:
    rows = faults(path.read_text(encoding="utf-8"))
    assert not rows, "\n".join(f"{path.relative_to(ROOT)}:{line}: {why}" for line, why in rows)


SCRIPTS = [*(ROOT / "runs").glob("*.sh"), *(ROOT / "configs").glob("*.toml"), ROOT / "Makefile", ROOT / ".ci" / "run"]


@pytest.mark.parametrize("path", sorted(SCRIPTS), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_comments_of_scripts_keep_the_language_rules(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line.partition("#")[2].lstrip("! ") for line in lines)
    rows = list(sentences(text, 1))
    assert not rows, "\n".join(f"{path.relative_to(ROOT)}:{line}: {why}" for line, why in rows)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_keep_the_language_rules(path: Path) -> None:
    text = re.sub(r"^```.*?^```", lambda match: "\n" * match.group().count("\n"), path.read_text(), flags=re.M | re.S)
    rows = list(sentences(text, 1))
    assert not rows, "\n".join(f"{path.relative_to(ROOT)}:{line}: {why}" for line, why in rows)


@pytest.mark.parametrize(
    "source",
    [
        '"""What the writer keeps."""',
        '"""The writer. Whoever calls it waits."""',
        "# where nothing is left\n# Where nothing is left, stop.\n",
        "found = 1",
        "def f(wanted): ...",
        "MOST_BYTES = 3",
        "a, b = f(x), g(y)",
        "def test_nobody_pays(): ...\ndef test_bid_nobody_sees(): ...",
        "x = 1  # the log says so",
    ],
)
def test_each_language_rule_bites(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""State owned by the writer process."""',
        "# what is left stays\n",
        "low, high = 0, -1\na, b = b, a\n",
        'x = 1  # the spec: "Whoever"  # language: ok, a quotation',
        '"""What is a lease? Money set apart for a worker."""',
    ],
)
def test_plain_language_passes(source: str) -> None:
    assert not faults(source)
