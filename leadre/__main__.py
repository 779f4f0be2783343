"""The command line: ``leadre VERB [PART] --config configs/x.toml --field value``. One verb per stage.

Modules of stages are imported on demand: `leadre --help` must not wait for torch.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType

from leadre import __version__, config, extras
from leadre.config import VERBS, command_of
from leadre.errors import ArtifactError, InputError, ParityError, StorageError, StoreDown
from leadre.redact import redact

# The values of --stage that selected a verb itself: `tune --stage sft` was another form of `tune`.
FIRST_STAGE = {"tune": "sft", "generate": "requests", "serve": "bids", "evaluate": "retrieval"}
SWITCHES = {"--help": "help", "-h": "help", "--show": "show"}
USAGE = "usage: leadre VERB [--config FILE.toml] [--field value ...] [--show] [--help]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 2 the user's error (one line on stderr), 130 interrupted."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except (InputError, ArtifactError, ParityError, StorageError, StoreDown) as error:
        print(f"leadre: {redact(str(error))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "leadre":
            raise
        missing = f"{error.name!r} is missing, which an installed package needs"
        print(f"leadre: {missing}; `pip check` names both", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("leadre: interrupted; the same command resumes from the last finished step", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        _print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"leadre {__version__}")
        return 0
    section, rest = _command(arguments)
    path, flags, switches = _parse(rest)
    section = _without_stage_flag(section, flags)
    module = importlib.import_module(VERBS[section])
    if "help" in switches:
        _print(_help(section, module))
        return 0
    effective = config.load(module.Config, section=section, path=path, flags=flags)
    if path is not None and getattr(effective, "stages", path) is None:
        effective = effective.changed({"stages": path})  # a command that runs other stages reads their sections
    if "show" in switches:
        show = getattr(module, "show", None)  # of a command that runs other stages
        _print(show(effective) if show else config.lines(effective.flat()))
        return 0
    extras.require(f"`leadre {command_of(section)}`", *extras.COMMANDS[section])
    with _shows_life(section):
        output = module.run(effective)
    if isinstance(output, str):  # alone on stdout, for another program: KEY=$(leadre serve key --name NAME)
        _print(output)
    return 0


def _shows_life(section: str) -> AbstractContextManager[None]:
    """Lines of a command that works for long; a bidder may be silent, and `train` shows its memory as well."""
    if section == "train" or section.startswith("serve"):
        return nullcontext()
    from leadre import progress  # costs 50 ms, which --help does not need

    return progress.alive(f"{command_of(section)}: running")


def _command(arguments: list[str]) -> tuple[str, list[str]]:
    """(section of the command, its flags) of `VERB [PART] --flag ...`. Raises InputError for an unknown command."""
    verb, *rest = arguments
    parts = _parts(verb)
    if rest and parts and not rest[0].startswith("-"):
        part, *rest = rest
        if part not in parts:
            nearest = config.nearest(part, parts)
            raise InputError(
                f"unknown subcommand {part!r} of `leadre {verb}`; the nearest is `leadre {verb} {nearest}`"
            )
        return f"{verb}-{part}", rest
    if verb not in VERBS:
        nearest = command_of(config.nearest(verb, VERBS))
        raise InputError(f"unknown verb {verb!r}; the nearest is {nearest!r}, and `leadre --help` lists them all")
    if command_of(verb) != verb:
        _deprecated(f"leadre {verb}", verb)
    return verb, rest


def _without_stage_flag(section: str, flags: dict[str, str]) -> str:
    """The section that the flag --stage selects, and removes the flag: subcommands replace it.

    Raises InputError for an unknown stage, and for a stage beside a subcommand.
    """
    verb, dash, _ = section.partition("-")
    stage = flags.pop("stage", None) if verb in FIRST_STAGE else None
    if stage is None:
        return section
    if dash:
        raise InputError(f"--stage {stage}: leave it out; `leadre {command_of(section)}` names the subcommand")
    chosen = section if stage == FIRST_STAGE[section] else f"{section}-{stage}"
    if chosen not in VERBS:
        nearest = command_of(config.nearest(chosen, [section, *(f"{section}-{part}" for part in _parts(section))]))
        raise InputError(
            f"--stage {stage}: unknown subcommand of `leadre {section}`; the nearest is `leadre {nearest}`"
        )
    _deprecated(f"leadre {section} --stage {stage}", chosen)
    return chosen


def _deprecated(old: str, section: str) -> None:
    print(f"leadre: `{old}` will be removed in the next release; write `leadre {command_of(section)}`", file=sys.stderr)


def _parts(verb: str) -> list[str]:
    """The subcommands of a verb."""
    return [section.removeprefix(f"{verb}-") for section in VERBS if section.startswith(f"{verb}-")]


def _parse(arguments: list[str]) -> tuple[Path | None, dict[str, str], set[str]]:
    """(--config, option -> text, switches) of ``--field value`` and ``--field=value``; a repeated flag overrides."""
    flags: dict[str, str] = {}
    switches: set[str] = set()
    words = list(reversed(arguments))
    while words:
        word = words.pop()
        if word in SWITCHES:
            switches.add(SWITCHES[word])
            continue
        if not word.startswith("--"):
            raise InputError(f"{word!r} is not a flag; {USAGE}")
        name, equals, text = word[2:].partition("=")
        if not equals and (not words or words[-1].startswith("--")):
            raise InputError(f"--{name} needs a value: --{name} VALUE (true or false for a switch)")
        flags[name.replace("-", "_")] = text if equals else words.pop()
    path = flags.pop("config", None)
    return (None if path is None else Path(path)), flags, switches


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader (`| head`) is gone; the rest of the buffer would raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _overview() -> str:
    lines = [f"leadre {__version__}: display ads retrieved by a language model", "", USAGE, "", "verbs, in order:"]
    lines += [f"  {command_of(section):<20}{_first_docstring_line(module)}" for section, module in VERBS.items()]
    return "\n".join([*lines, "", "`leadre VERB --help` lists the options of a verb; runs/demo.sh runs all stages."])


def _first_docstring_line(module: str) -> str:
    """The first line of a module's docstring, read from its source: an import would load all that the verb needs."""
    source = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_bytes())) or ""
    return docstring.partition("\n")[0]


def _help(section: str, module: ModuleType) -> str:
    lines = [(module.__doc__ or "").strip(), "", USAGE.replace("VERB", command_of(section)), ""]
    for row in config.describe(module.Config):
        kind = ", ".join(filter(None, (row.type, row.bounds)))
        lines.append(f"  --{row.field.replace('_', '-'):<24} {row.help} [{kind}; default {row.default or 'empty'}]")
    lines.append(f"  --{'config':<24} a TOML file: shared keys at the top, the rest under [{section}]")
    lines.append(f"  --{'show':<24} print the effective config and stop")
    parts = ", ".join(f"`leadre {section} {part}`" for part in _parts(section))
    if parts:
        lines += ["", f"subcommands, each with options of its own: {parts}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
