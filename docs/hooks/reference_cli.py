"""The page of all commands and options, from the dataclasses that parse them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence

from leadre import config
from leadre.config import VERBS, Common, HelpRow, command_of

INTRODUCTION = """# Command line

```text
leadre VERB [PART] [--config FILE.toml] [--option value ...] [--show] [--help]
```

An option is a flag (`--max-steps 240`), or a key in the section of the command in a TOML file (`max_steps = 240` under
`[tune]`). A flag overrides the section, and the section overrides the keys at the top of the file. `--show` prints the
effective options and stops. An unknown option is an error, as is a value out of its range.

All commands have these options. In a TOML file they are keys at the top.
"""


def page() -> str:
    """The page in Markdown."""
    return "\n".join([INTRODUCTION, _table(config.describe(Common)), *map(_command, VERBS)])


def _command(section: str) -> str:
    """A heading, the module's docstring, the options beside the common ones."""
    module = importlib.import_module(VERBS[section])
    common = config.describe(Common)
    own = [row for row in config.describe(module.Config) if row not in common]
    title = f"\n## leadre {command_of(section)}\n"
    return "\n".join([title, inspect.getdoc(module) or "", f"\nSection of a TOML file: `[{section}]`.\n", _table(own)])


def _table(rows: Sequence[HelpRow]) -> str:
    lines = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        kind = row.type.replace(" | ", "` or `")
        bounds = f", {row.bounds}" if row.bounds else ""
        default = f"`{row.default}`" if row.default else "empty"
        lines.append(f"| `--{row.field.replace('_', '-')}` | `{kind}`{bounds} | {default} | {row.help} |")
    return "\n".join(lines)
