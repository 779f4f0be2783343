"""Changes of the file of callers: a new section, or another token of a caller. Comments and other lines stay."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path
from typing import Any

import msgspec

from leadre.errors import InputError
from leadre.serve.callers import registry
from leadre.serve.callers.registry import Section, token_hash
from leadre.serve.events import durable

SECRET_BYTES = 32
KEPT_TOKENS = 2  # of a caller: the new one, and the one that it replaces
_TOKENS = re.compile(r"^([ \t]*tokens[ \t]*=[ \t]*)\[[^\]]*\]", re.MULTILINE)
_DEFAULTS = msgspec.to_builtins(Section())


def new_token(name: str) -> str:
    """A token of a caller: its name, a dot, and a secret."""
    return f"{name}.{secrets.token_urlsafe(SECRET_BYTES)}"


def add_caller(path: Path, name: str, section: Section) -> None:
    """Append a section to the file, which is created if it is missing. InputError if the caller is there already."""
    text = _text(path)
    if name in registry.parse(text):
        raise InputError(f"{path}: [{name}] is there already; change its section with an editor")
    values = {key: value for key, value in msgspec.to_builtins(section).items() if value != _DEFAULTS[key]}
    lines = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    gap = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
    _write(path, f"{text}{gap}[{name}]\n{lines}", {name: section})


def add_token(path: Path, name: str, token: str) -> None:
    """Put a token before the others of a caller; the last `KEPT_TOKENS` stay in force.

    InputError for an unknown caller, and for a section in which no list ``tokens`` is found.
    """
    text = _text(path)
    known = registry.parse(text).get(name)
    if known is None:
        raise InputError(f"{path}: has no caller {name!r}")
    tokens = [token_hash(token), *known.section.tokens][:KEPT_TOKENS]
    header = re.search(rf"(?m)^[ \t]*\[[ \t]*{name}[ \t]*\][^\n]*$", text)
    start = header.end() if header else len(text)
    end = text.find("\n[", start)
    body = text[start:] if end < 0 else text[start:end]
    changed, count = _TOKENS.subn(rf"\g<1>{json.dumps(tokens)}", body, count=1)
    if not count:
        raise InputError(f"{path}: no list `tokens` is found in [{name}]; set tokens = {json.dumps(tokens)} there")
    section = msgspec.structs.replace(known.section, tokens=tokens)
    _write(path, text[:start] + changed + text[start + len(body) :], {name: section})


def _text(path: Path) -> str:
    try:
        registry.read(path)  # InputError names what is wrong with a file that was changed by hand
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _write(path: Path, text: str, expected: dict[str, Any]) -> None:
    """Replace the file, readable by its owner alone, if the new text has what is expected."""
    callers = registry.parse(text)
    for name, section in expected.items():
        if callers[name].section != section:
            raise InputError(f"{path}: [{name}] cannot be changed by this command; change it with an editor")
    durable.replace(path, text.encode(), mode=0o600)
