"""Config of a stage: one frozen dataclass. Precedence: defaults < TOML shared keys < TOML [section] < flags.

A stage declares its options beside its code; flags, help and checks follow from the declaration::

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Common):
        levels: int = config.option(3, "quantised levels of a semantic ID", at_least=1)
        schedule: TrainingSchedule = config.group(TrainingSchedule(epochs=5))

A field whose type is a dataclass is a group: its options are options of the stage, under the same flat names in flags,
TOML and recorded configs. An unknown key is an error that names the nearest known one: a key that is silently ignored
costs a night of training.
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
from leadre.redact import redact

# The section of each command in a TOML file -> its module, which has `Config` and `run(config)`: the command that runs
# all stages, then each in their order. [tune-dpo] is the section of `leadre tune dpo` (`command_of`).
VERBS = {
    "train": "leadre.train.run",
    "data": "leadre.data.run",
    "data-fetch": "leadre.data.fetch.run",
    "semid": "leadre.semid.run",
    "tune": "leadre.tune.run",
    "tune-dpo": "leadre.tune.preferences.run",
    "generate": "leadre.generate.run",
    "generate-lists": "leadre.generate.lists.run",
    "generate-switch": "leadre.generate.lists.run_switch",
    "rank-train": "leadre.rank.run_train",
    "rank-coarse": "leadre.rank.run_coarse",
    "rank-calibrate": "leadre.rank.run_calibrate",
    "rank-score": "leadre.rank.run_score",
    "serve": "leadre.serve.run",
    "serve-key": "leadre.serve.run_key",
    "serve-caller": "leadre.serve.run_caller",
    "serve-openapi": "leadre.serve.run_openapi",
    "serve-backup": "leadre.serve.run_backup",
    "serve-restore": "leadre.serve.run_restore",
    "serve-repair": "leadre.serve.run_repair",
    "serve-clock": "leadre.serve.run_clock",
    "serve-ranker": "leadre.serve.run_ranker",
    "serve-rotate": "leadre.serve.run_rotate",
    "evaluate": "leadre.evaluate.run",
    "evaluate-ablation": "leadre.evaluate.ablation.run",
    "evaluate-replay": "leadre.evaluate.replay.run",
    "evaluate-simulate": "leadre.evaluate.simulation.run",
}

T = TypeVar("T")
C = TypeVar("C", bound="Common")


class HelpRow(NamedTuple):
    """One line of ``leadre VERB --help``."""

    field: str
    type: str
    bounds: str  # in words; "" without bounds
    default: str
    help: str


class Bounds(NamedTuple):
    """The range of a number, or of every number of a tuple. None: no bound."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def allow(self, value: object) -> bool:
        """True if the value, or each entry of a tuple, is within the bounds; None and text always are."""
        if isinstance(value, tuple):
            return all(self.allow(entry) for entry in value)
        if not isinstance(value, int | float):
            return True
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words: ``at least 0 and below 1``."""
        limits = [f"{name.replace('_', ' ')} {limit:g}" for name, limit in self._asdict().items() if limit is not None]
        return " and ".join(limits)


class Option(NamedTuple):
    """One option of a stage: a field of its Config, or of the dataclass in the Config's field ``group``.

    ``hint`` is the type of the field.
    """

    name: str
    hint: Any
    default: object  # dataclasses.MISSING: required
    help: str
    bounds: Bounds
    group: str | None


def option(
    default: T,
    help: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> T:
    """A dataclass field with its help text and range.

    The return type is that of the default, so that ``x: int = option(3, "...")`` passes the type checker.
    """
    metadata = {"help": help, "bounds": Bounds(at_least, at_most, above, below)}
    field: T = dataclasses.field(default=default, metadata=metadata)
    return field


def group(default: T) -> T:
    """A dataclass field whose type is a dataclass of options; ``default`` has the default of each option."""
    field: T = dataclasses.field(default=default)
    return field


@dataclass(frozen=True, kw_only=True)
class Common:
    """The keys that every stage shares; in TOML they are at the top, outside any section."""

    run: str = option("demo", "name of the run, a folder under work")
    work: Path = option(Path("work"), "folder that holds all runs")
    seed: int = option(0, "seed of every random choice")
    threads: int = option(0, "processor threads, 0 = all cores", at_least=0)

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range, also in a config that code builds without `load`."""
        values = self.flat()
        for name, option in _options(type(self)).items():
            if not option.bounds.allow(values[name]):
                raise InputError(f"{name}: must be {option.bounds}, got {show(values[name])}")

    def folder(self, step: str) -> Path:
        """The artifact folder ``work/run/step``. Raises InputError if ``run`` is not a plain folder name."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.run):
            raise InputError(f"run = {self.run!r}: use letters, digits, '.', '_' and '-'; it names a folder")
        return self.work / self.run / step

    def flat(self) -> dict[str, Any]:
        """Name -> value of every option, those of groups included: the form that artifacts record."""
        values: dict[str, Any] = {}
        for name, option in _options(type(self)).items():
            holder = self if option.group is None else getattr(self, option.group)
            values[name] = getattr(holder, name)
        return values

    def changed(self: C, values: Mapping[str, object]) -> C:
        """A copy with other ``values``, named as in `flat`. Raises KeyError for an unknown option."""
        fields: dict[str, Any] = {}
        for name, value in values.items():
            group = _options(type(self))[name].group
            if group is None:
                fields[name] = value
            else:
                fields[group] = dataclasses.replace(fields.get(group, getattr(self, group)), **{name: value})
        return dataclasses.replace(self, **fields)


def load(cls: type[C], *, section: str, path: Path | None, flags: Mapping[str, str]) -> C:
    """The effective config of one stage.

    ``section`` is the stage's name in the TOML file at ``path``; ``flags`` maps option names (dashes or underscores) to
    text. Raises InputError for an unknown key or section, a wrong type or a value that is not allowed.
    """
    options = _options(cls)
    values: dict[str, Any] = {}
    for key, value, where in _toml_items(section, path):
        _check_known(key, options, where)
        values[key] = _checked(value, options[key], f"{where}, key {key!r}", is_text=False)
    for flag, text in flags.items():
        key = flag.lstrip("-").replace("-", "_")
        _check_known(key, options, "command line")
        values[key] = _checked(text, options[key], f"command line, --{key.replace('_', '-')}", is_text=True)
    required = [name for name, option in options.items() if option.default is dataclasses.MISSING]
    for name in required:
        if name not in values:
            raise InputError(
                f"{section}: {name!r} has no default; set it in [{section}] or by --{name.replace('_', '-')}"
            )
    return cls(**{name: values.pop(name) for name in required}).changed(values)


def load_stages(settings: Common, path: Path | None, stages: Mapping[str, type[Common]]) -> dict[str, Any]:
    """The configs of ``stages``, by section, from the file at ``path``, with the shared options of ``settings``."""
    shared = {field.name: show(getattr(settings, field.name)) for field in dataclasses.fields(Common)}
    return {section: load(cls, section=section, path=path, flags=shared) for section, cls in stages.items()}


def keys_of(section: str, path: Path | None) -> set[str]:
    """The options that the file at ``path`` sets for a stage, shared keys included. Raises InputError."""
    return {key for key, _, _ in _toml_items(section, path)}


def describe(cls: type[Common]) -> list[HelpRow]:
    """The rows of ``--help``: the stage's own options, then the shared ones."""
    shared = {field.name for field in dataclasses.fields(Common)}
    ordered = sorted(_options(cls).values(), key=lambda option: option.name in shared)
    return [
        HelpRow(option.name, _type_name(option.hint), str(option.bounds), _shown_default(option), option.help)
        for option in ordered
    ]


def show(value: object) -> str:
    """A value in the form of a flag, so that the output of ``--show`` can be pasted into a command; no password."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(show(entry) for entry in value)
    return "none" if value is None else redact(str(value))


def lines(values: Mapping[str, object]) -> str:
    """``name = value`` of each option, a line each."""
    return "\n".join(f"{name} = {show(value)}" for name, value in values.items())


def command_of(section: str) -> str:
    """The command of a TOML section: `tune dpo` of [tune-dpo]."""
    return section.replace("-", " ", 1)


def nearest(name: str, known: Collection[str]) -> str:
    """The known name most similar to ``name``; for error messages."""
    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]


def _options(cls: type) -> dict[str, Option]:
    """Name -> option of a Config; the options of a group are in the position of the group.

    A group may have fields that `option` does not declare. They are no options: the code that runs the stage sets them.
    """
    options: dict[str, Option] = {}
    for field in _fields(cls):
        if dataclasses.is_dataclass(field.hint):
            assert dataclasses.is_dataclass(field.default), f"{cls.__name__}.{field.name}: a group needs a default"
            options_of_field = [
                option._replace(default=getattr(field.default, option.name), group=field.name)
                for option in _fields(typing.cast(type, field.hint))
                if option.help
            ]
        else:
            options_of_field = [field]
        for option in options_of_field:
            assert option.name not in options, f"{cls.__name__}: two options have the name {option.name!r}"
            options[option.name] = option
    return options


def _fields(cls: type) -> list[Option]:
    """The fields of a dataclass as options; a group is one entry."""
    hints = typing.get_type_hints(cls)
    return [
        Option(
            name=field.name,
            hint=hints[field.name],
            default=field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
            help=field.metadata.get("help", ""),
            bounds=field.metadata.get("bounds", Bounds()),
            group=None,
        )
        for field in dataclasses.fields(cls)
    ]


def _toml_items(section: str, path: Path | None) -> Iterator[tuple[str, object, str]]:
    """(key, value, where it was) of the shared keys, then of the section: the later value of a key wins."""
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
            _check_known(key, VERBS, str(path), noun="section")
        else:
            _check_known(key, shared, f"{path}, top of the file")
            yield key, value, str(path)
    for key, value in table.get(section, {}).items():
        yield key, value, f"{path} [{section}]"


def _check_known(key: str, known: Collection[str], where: str, noun: str = "key") -> None:
    if key not in known:
        raise InputError(f"{where}: unknown {noun} {key!r}; the nearest is {nearest(key, known)!r}")


def _shown_default(option: Option) -> str:
    return "(required)" if option.default is dataclasses.MISSING else show(option.default)


def _type_name(hint: Any) -> str:
    """The type in words: ``int``, ``cpu | cuda``, ``list of float``, ``Path | none``."""
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(show(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(arg) for arg in args)
    if origin is tuple:
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return "table of the TOML file"
    return "none" if hint is types.NoneType else str(hint.__name__)


def _checked(value: object, option: Option, where: str, *, is_text: bool) -> object:
    """``value`` as the option's type and within its bounds. Raises InputError."""
    converted = _convert(value, option.hint, where, is_text=is_text)
    if not option.bounds.allow(converted):
        raise InputError(f"{where}: must be {option.bounds}, got {show(converted)}")
    return converted


def _convert(value: object, hint: Any, where: str, *, is_text: bool) -> object:
    """``value`` as the option's type. ``is_text``: a flag, to be parsed; else a TOML value, whose type must fit."""
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value == "none":  # TOML has no null either
            return None
        (inner,) = (arg for arg in args if arg is not types.NoneType)  # only ``X | None`` is allowed in a config
        return _convert(value, inner, where, is_text=is_text)
    if origin is typing.Literal:
        for arg in args:
            if value == (show(arg) if is_text else arg) and (is_text or type(value) is type(arg)):
                return arg
    elif origin is dict and not is_text and isinstance(value, dict):
        return value
    elif origin is tuple and (is_text or isinstance(value, list)):
        entries = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        return tuple(_convert(entry, args[0], where, is_text=is_text) for entry in typing.cast(list[object], entries))
    elif origin is None and (scalar := _scalar(value, hint, is_text=is_text)) is not None:
        return scalar
    raise InputError(f"{where}: must be {_type_name(hint)}, got {value!r}")


def _scalar(value: object, hint: Any, *, is_text: bool) -> object | None:
    """A TOML value or a flag's text as str, Path, bool, int or float; None if it does not fit."""
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
    except (ValueError, OverflowError):  # an int beyond every float
        return None
    # nan never equals itself: an artifact made with it would never be current
    return None if isinstance(number, float) and not math.isfinite(number) else number
