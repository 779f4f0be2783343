"""One frozen dataclass per runnable file: defaults < TOML shared keys < TOML [section] < flags.

A stage declares its options beside its code and gets the flags, the help and the checks from here::

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Common):
        levels: int = config.option(3, "quantised levels of a semantic ID")

An unknown key is an error that names the nearest known one: a key that is silently ignored costs a night of training.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from leadre.errors import InputError

# The TOML sections, which are the verbs of the command line, in the order in which they run.
SECTIONS = (
    "data",
    "semid",
    "tune",
    "tune-dpo",
    "generate",
    "generate-lists",
    "generate-switch",
    "serve",
    "serve-key",
    "serve-backup",
    "serve-restore",
    "evaluate",
    "evaluate-ablation",
    "evaluate-replay",
)

T = TypeVar("T")
C = TypeVar("C", bound="Common")


class HelpRow(NamedTuple):
    """One line of ``leadre VERB --help``."""

    field: str
    type: str
    default: str
    help: str


def option(default: T, help: str) -> T:
    """A dataclass field with its help text. Typed as its default, so that ``x: int = option(3, "...")`` checks."""
    made: T = dataclasses.field(default=default, metadata={"help": help})
    return made


@dataclass(frozen=True, kw_only=True)
class Common:
    """The keys that every stage shares; in TOML they stand at the top, outside any section."""

    run: str = option("demo", "name of the run, a folder under work")
    work: Path = option(Path("work"), "folder that holds all runs")
    seed: int = option(0, "seed of every random choice")
    threads: int = option(0, "processor threads, 0 = all cores")

    def folder(self, step: str) -> Path:
        """The artifact folder ``work/run/step``. Raises InputError where ``run`` is not a plain folder name."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.run):
            raise InputError(f"run = {self.run!r}: use letters, digits, '.', '_' and '-'; it names a folder")
        return self.work / self.run / step


def load(cls: type[C], *, section: str, path: Path | None, flags: Mapping[str, str]) -> C:
    """The effective config of one stage.

    ``section`` is the stage's name in the TOML file at ``path``; ``flags`` maps field names (dashes or underscores) to
    text. Raises InputError for an unknown key or section, a wrong type or a value that is not allowed.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for key, value, where in _toml_items(section, path):
        _check_known(key, known, where)
        values[key] = _convert(value, hints[key], f"{where}, key {key!r}", is_text=False)
    for flag, text in flags.items():
        key = flag.lstrip("-").replace("-", "_")
        _check_known(key, known, "command line")
        values[key] = _convert(text, hints[key], f"command line, --{key}", is_text=True)
    for field in dataclasses.fields(cls):
        if field.name not in values and not _has_default(field):
            raise InputError(f"{section}: {field.name!r} has no default; set it in [{section}] or by --{field.name}")
    return cls(**values)


def describe(cls: type[Common]) -> list[HelpRow]:
    """The rows of ``--help``: the stage's own fields first, the shared ones after them."""
    hints = typing.get_type_hints(cls)
    shared = {field.name for field in dataclasses.fields(Common)}
    ordered = sorted(dataclasses.fields(cls), key=lambda field: field.name in shared)
    return [
        HelpRow(field.name, _name(hints[field.name]), show(_default(field)), field.metadata.get("help", ""))
        for field in ordered
    ]


def show(value: object) -> str:
    """A value as a flag would spell it, so that ``--show`` can be pasted back."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(show(entry) for entry in value)
    return "none" if value is None else str(value)


def nearest(name: str, known: Collection[str]) -> str:
    """The known name most like ``name``; for error messages."""
    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]


def _toml_items(section: str, path: Path | None) -> Iterator[tuple[str, object, str]]:
    """(key, value, where) of the shared keys, then of the section, so that the section wins."""
    if path is None:
        return
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read this config ({error.strerror}); check --config") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    shared = [field.name for field in dataclasses.fields(Common)]
    for key, value in table.items():
        if isinstance(value, dict):
            _check_known(key, SECTIONS, str(path), noun="section")
        else:
            _check_known(key, shared, f"{path}, top of the file")
            yield key, value, str(path)
    for key, value in table.get(section, {}).items():
        yield key, value, f"{path} [{section}]"


def _check_known(key: str, known: Collection[str], where: str, noun: str = "key") -> None:
    if key not in known:
        raise InputError(f"{where}: unknown {noun} {key!r}; the nearest is {nearest(key, known)!r}")


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "(required)" if field.default is dataclasses.MISSING else field.default


def _name(hint: Any) -> str:
    """The type as a person reads it: ``int``, ``cpu | cuda``, ``list of float``, ``Path | none``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(show(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_name(arg) for arg in args)
    if origin is tuple:
        return f"list of {_name(args[0])}"
    return "none" if hint is types.NoneType else str(hint.__name__)


def _convert(value: object, hint: Any, where: str, *, is_text: bool) -> object:
    """``value`` as the field's type. ``is_text``: a flag, to be parsed; else a TOML value, whose type must fit."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value == "none":  # TOML has no null either
            return None
        (inner,) = (arg for arg in args if arg is not types.NoneType)  # only ``X | None`` is allowed in a config
        return _convert(value, inner, where, is_text=is_text)
    if origin is typing.Literal:
        for arg in args:
            if value == (show(arg) if is_text else arg) and (is_text or type(value) is type(arg)):
                return arg
    elif origin is tuple and (is_text or isinstance(value, list)):
        entries = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        return tuple(_convert(entry, args[0], where, is_text=is_text) for entry in typing.cast(list[object], entries))
    elif origin is None and (scalar := _scalar(value, hint, is_text=is_text)) is not None:
        return scalar
    raise InputError(f"{where}: wants {_name(hint)}, got {value!r}")


def _scalar(value: object, hint: Any, *, is_text: bool) -> object | None:
    """str, Path, bool, int or float out of a TOML value or a flag's text; None where it does not fit."""
    if hint in (str, Path):
        return hint(value) if isinstance(value, str) else None
    if hint is bool:
        return {"true": True, "false": False}.get(str(value)) if is_text else value if isinstance(value, bool) else None
    assert hint in (int, float), f"config fields cannot have the type {hint}"
    if isinstance(value, bool) or not (is_text or isinstance(value, int | float)):
        return None
    if hint is int and isinstance(value, float):
        return None
    number: int | float
    try:
        number = hint(value)
    except ValueError:
        return None
    # nan never equals itself: an artifact made with it would never be current
    return None if isinstance(number, float) and not math.isfinite(number) else number
