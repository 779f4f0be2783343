"""The command line: ``leadre VERB --config configs/x.toml --field value``. One verb per stage."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from leadre import __version__, config
from leadre.errors import ArtifactError, InputError, ParityError, StorageError, StoreDown

# Imported only when asked for: --help must not wait for torch. Each module has `Config` and `run(config)`.
VERBS = {
    "data": "leadre.data.run",
    "semid": "leadre.semid.run",
    "tune": "leadre.tune.run",
    "tune-dpo": "leadre.tune.preferences.run",
    "generate": "leadre.generate.run",
    "generate-lists": "leadre.generate.lists.run",
    "generate-switch": "leadre.generate.lists.run_switch",
    "serve": "leadre.serve.run",
    "serve-key": "leadre.serve.run_key",
    "serve-backup": "leadre.serve.run_backup",
    "serve-restore": "leadre.serve.run_restore",
    "evaluate": "leadre.evaluate.run",
    "evaluate-ablation": "leadre.evaluate.ablation.run",
    "evaluate-replay": "leadre.evaluate.replay.run",
}
# of a verb with several; `tune --stage dpo` is `tune-dpo`
FIRST_STAGE = {"tune": "sft", "generate": "requests", "serve": "bids", "evaluate": "retrieval"}
SWITCHES = {"--help": "help", "-h": "help", "--show": "show"}
USAGE = "usage: leadre VERB [--config FILE.toml] [--field value ...] [--show] [--help]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 done, 2 for the user to mend (one line on stderr), 130 interrupted."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except (InputError, ArtifactError, ParityError, StorageError, StoreDown) as error:
        print(f"leadre: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("leadre: interrupted; the same command carries on from the last finished step", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        _tell(_overview())
        return 0
    verb, *rest = arguments
    if verb == "--version":
        print(f"leadre {__version__}")
        return 0
    path, flags, switches = _parse(rest)
    first = FIRST_STAGE.get(verb)
    if first is not None and (stage := flags.pop("stage", first)) != first:
        verb = f"{verb}-{stage}"
    if verb not in VERBS:
        nearest = config.nearest(verb, VERBS)
        raise InputError(f"unknown verb {verb!r}; the nearest is {nearest!r}, and `leadre --help` lists them all")
    module = _import(verb)
    if "help" in switches:
        _tell(_help(verb, module))
        return 0
    effective = config.load(module.Config, section=verb, path=path, flags=flags)
    if path is not None and getattr(effective, "stages", path) is None:
        effective = dataclasses.replace(effective, stages=path)  # a verb that runs other verbs reads their sections
    if "show" in switches:
        named = [(field.name, getattr(effective, field.name)) for field in dataclasses.fields(effective)]
        _tell("\n".join(f"{name} = {config.show(value)}" for name, value in named))
        return 0
    module.run(effective)
    return 0


def _parse(arguments: list[str]) -> tuple[Path | None, dict[str, str], set[str]]:
    """(--config, field -> text, switches given) out of ``--field value`` and ``--field=value``; the last one wins."""
    flags: dict[str, str] = {}
    switches: set[str] = set()
    waiting = list(reversed(arguments))
    while waiting:
        word = waiting.pop()
        if word in SWITCHES:
            switches.add(SWITCHES[word])
            continue
        if not word.startswith("--"):
            raise InputError(f"{word!r} is not a flag; {USAGE}")
        name, equals, text = word[2:].partition("=")
        if not equals and (not waiting or waiting[-1].startswith("--")):
            raise InputError(f"--{name} wants a value: --{name} VALUE (true or false for a switch)")
        flags[name.replace("-", "_")] = text if equals else waiting.pop()
    path = flags.pop("config", None)
    return (None if path is None else Path(path)), flags, switches


def _import(verb: str) -> ModuleType:
    try:
        return importlib.import_module(VERBS[verb])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "leadre":
            raise
        raise InputError(f"`leadre {verb}` needs the package {error.name!r}: pip install 'leadre[all]'") from error


def _tell(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has read enough; what is still buffered would raise once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _overview() -> str:
    lines = [f"leadre {__version__}: display ads retrieved by a language model", "", USAGE, "", "verbs, in order:"]
    lines += [f"  {verb:<16}{_first_docstring_line(module)}" for verb, module in VERBS.items()]
    return "\n".join([*lines, "", "`leadre VERB --help` lists a verb's fields; runs/demo.sh runs them all."])


def _first_docstring_line(module: str) -> str:
    """Read from the source: importing the module would load everything that the verb needs."""
    source = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_bytes())) or ""
    return docstring.partition("\n")[0]


def _help(verb: str, stage: ModuleType) -> str:
    lines = [(stage.__doc__ or "").strip(), "", USAGE.replace("VERB", verb), ""]
    for row in config.describe(stage.Config):
        lines.append(f"  --{row.field.replace('_', '-'):<24} {row.help} [{row.type}; default {row.default or 'empty'}]")
    stages = [name.removeprefix(f"{verb}-") for name in VERBS if name.startswith(f"{verb}-")]
    if stages:
        lines.append(f"  --{'stage':<24} run another stage of it, with options of its own: {', '.join(stages)}")
    lines.append(f"  --{'config':<24} a TOML file: shared keys at the top, the rest under [{verb}]")
    lines.append(f"  --{'show':<24} print the effective config and stop")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
