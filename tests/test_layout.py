"""The layout rules that a machine can check. Each rule is a function of source text; a test breaks each rule once."""

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leadre import config
from leadre.__main__ import VERBS

ROOT = Path(__file__).parents[1]
# In the order of the flow. The Python API is no stage; it may import all of them, and leadre/__init__.py exports it.
STAGES = ("data", "semid", "lm", "tune", "generate", "rank", "auction", "creative", "serve", "evaluate", "train", "api")
# The parts of leadre/serve; each imports from itself and from those before it. Verbs (run*.py) and backup come last.
SERVE_PARTS = (
    *("settings", "paths", "private", "plan", "protocol", "catalogue"),
    *("events", "ipc", "callers", "rankers", "bidding", "manage", "processes"),
)
PACKAGE = sorted((ROOT / "leadre").rglob("*.py"))
OURS = sorted(path for folder in ("leadre", "tests", "bench", "docs") for path in (ROOT / folder).rglob("*.py"))

MAX_LINES_OF_A_FILE = 400
MAX_LINES_OF_A_FUNCTION = 60
MAX_LINES_OF_A_CLASS = 150
# "leadre/x.py", "leadre/x.py:function" or "leadre/x.py:Class" -> why it may be longer.
LONG_WITH_REASON: dict[str, str] = {}
# Files that may catch Exception -> why.
CATCH_ALL_WITH_REASON = {
    "leadre/scale.py": "whatever a caller's function raises is raised again with its shard's name",
    "leadre/background.py": "a task that fails is counted, reported and tried again; it must not end its process",
}

IMPORTERS = ("import_module", "__import__")
PICKLE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLE_FUNCTIONS = {"read_pickle", "to_pickle", "load_pickle"}
CLOCKS = {"time", "time_ns", "monotonic", "monotonic_ns"}  # of the module time

Rule = Callable[[str, ast.Module], Iterator[str]]  # (path from the root, parsed source) -> what is wrong


def where(path: str, node: ast.AST) -> str:
    return f"{path}:{getattr(node, 'lineno', 0)}"


def imported(path: str, tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every module imported anywhere in a file, in functions too, with relative names resolved."""
    folder = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from leadre import tune` imports leadre.tune, so every name counts as a module
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in IMPORTERS:
            yield from ((node, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def stage_of(parts: list[str]) -> str | None:
    return parts[1] if len(parts) > 1 and parts[0] == "leadre" and parts[1] in STAGES else None


def imports_point_left(path: str, tree: ast.Module) -> Iterator[str]:
    own = stage_of(path.removesuffix(".py").split("/"))
    for node, module in imported(path, tree):
        other = stage_of(module.split("."))
        is_export = path == "leadre/__init__.py" and other == "api"
        if other is not None and own is None and not is_export:
            yield f"{where(path, node)}: a base module imports the stage {other}"
        elif own is not None and other is not None and STAGES.index(other) > STAGES.index(own):
            yield f"{where(path, node)}: {own} imports {other}, which stands to its right"
        if module.startswith("leadre.__main__"):
            yield f"{where(path, node)}: the command line is imported"


def serve_parts_in_order(path: str, tree: ast.Module) -> Iterator[str]:
    own = serve_part(path.removesuffix(".py").split("/"))
    for node, module in imported(path, tree):
        other = serve_part(module.split("."))
        if own is not None and other is not None and other > own:
            yield f"{where(path, node)}: imports {module}, a part of serve that comes later"


def serve_part(parts: list[str]) -> int | None:
    """The position of a module of leadre.serve in SERVE_PARTS; verbs and backup come after all of them."""
    if parts[:2] != ["leadre", "serve"] or len(parts) < 3:
        return None
    return SERVE_PARTS.index(parts[2]) if parts[2] in SERVE_PARTS else len(SERVE_PARTS)


def serving_has_one_clock(path: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith(("leadre/serve/", "leadre/auction/")):
        return
    for node, module in imported(path, tree):
        if module.startswith("time.") and module.split(".")[1] in CLOCKS:
            yield f"{where(path, node)}: imports {module}; take the time from the injected leadre.clock.Clock"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {f"time.{name}" for name in CLOCKS}:
            yield f"{where(path, node)}: reads {ast.unparse(node)}; take the time from the injected leadre.clock.Clock"


def no_import_is_hidden(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in IMPORTERS:
            is_spelled_out = len(node.args) == 1 and isinstance(node.args[0], ast.Constant)
            if not is_spelled_out and path != "leadre/__main__.py":
                yield f"{where(path, node)}: only the command line imports a module by a computed name"


def only_scale_imports_ray(path: str, tree: ast.Module) -> Iterator[str]:
    for node, module in imported(path, tree):
        if module.split(".")[0] == "ray" and path != "leadre/scale.py":
            yield f"{where(path, node)}: imports ray; use leadre.scale.map_shards"


def nothing_prints(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        is_stdout = isinstance(node, ast.Attribute) and node.attr in ("stdout", "__stdout__")
        if (is_print or is_stdout) and path != "leadre/__main__.py":
            yield f"{where(path, node)}: prints; use leadre.progress.say"


def no_kwargs_in_public(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg:
            is_private = node.name.startswith("_") and not node.name.startswith("__")
            if not is_private:
                yield f"{where(path, node)}: {node.name} takes **{node.args.kwarg.arg}, which accepts any misspelling"


def no_catch_all(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            caught = {kind.id if isinstance(kind, ast.Name) else "" for kind in types if kind is not None}
            if (node.type is None or caught & {"Exception", "BaseException"}) and path not in CATCH_ALL_WITH_REASON:
                yield f"{where(path, node)}: catches everything; name the errors that you expect"


def nothing_unpickles(path: str, tree: ast.Module) -> Iterator[str]:
    for node, module in imported(path, tree):
        first = module.split(".")[0]
        last = module.split(".")[-1]
        if first in PICKLE_MODULES or last in PICKLE_FUNCTIONS or module in ("torch.load", "torch.save", "numpy.load"):
            yield f"{where(path, node)}: imports {module}, which reads or writes pickles"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = ast.unparse(node.func.value)
        name = node.func.attr
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in PICKLE_FUNCTIONS or (owner in ("torch", "torch.jit") and name in ("load", "save")):
            yield f"{where(path, node)}: {owner}.{name} reads or writes a pickle; use safetensors, parquet or json"
        if owner in ("np", "numpy") and name == "load" and options.get("allow_pickle") != "False":
            yield f"{where(path, node)}: np.load without allow_pickle=False"
        if "trust_remote_code" in options and options["trust_remote_code"] != "False":
            yield f"{where(path, node)}: trust_remote_code runs code from a model's folder"
        is_model = owner.split(".")[-1].startswith("AutoModel") and name == "from_pretrained"
        is_plain = options.get("use_safetensors") == "True" or "gguf_file" in options  # GGUF holds arrays, no objects
        if is_model and not is_plain:
            yield f"{where(path, node)}: {owner}.from_pretrained without use_safetensors=True may read a pickle"


PACKAGE_RULES: tuple[Rule, ...] = (
    imports_point_left,
    serve_parts_in_order,
    serving_has_one_clock,
    no_import_is_hidden,
    only_scale_imports_ray,
    nothing_prints,
    no_kwargs_in_public,
    no_catch_all,
    nothing_unpickles,
)


def too_long(path: str, text: str) -> Iterator[str]:
    """The keys of LONG_WITH_REASON that a file would need."""
    if len(text.splitlines()) > MAX_LINES_OF_A_FILE:
        yield path
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > MAX_LINES_OF_A_FUNCTION:
                yield f"{path}:{node.name}"
        elif isinstance(node, ast.ClassDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > MAX_LINES_OF_A_CLASS:
                yield f"{path}:{node.name}"


def cycles(files: dict[str, str]) -> list[list[str]]:
    """Circles of files that import each other: {path: source} -> sorted paths of each circle.

    Imports inside functions and under TYPE_CHECKING count.
    """
    module_of = {path: path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files}
    path_of = {module: path for path, module in module_of.items()}
    needs: dict[str, set[str]] = {}
    for path, source in files.items():
        modules = {module for _, module in imported(path, ast.parse(source))}
        modules |= {module.rpartition(".")[0] for module in modules if module not in path_of}  # a name in a module
        needs[path] = {path_of[module] for module in modules if module in path_of} - {path}
    reach = {path: reachable(path, needs) for path in files}
    circles = {tuple(sorted({path, *(other for other in reach[path] if path in reach[other])})) for path in files}
    return sorted(list(circle) for circle in circles if len(circle) > 1)


def reachable(start: str, needs: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        waiting += needs[waiting.pop()] - seen
        seen |= set(waiting)
    return seen


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: Rule) -> None:
    faults = []
    for path in PACKAGE:
        name = path.relative_to(ROOT).as_posix()
        if name == "leadre/__main__.py" and rule is imports_point_left:
            continue  # the shell above all stages; it knows them by name only
        faults += list(rule(name, ast.parse(path.read_text(encoding="utf-8"))))
    assert not faults, "\n".join(faults)


def test_no_files_import_each_other() -> None:
    circles = cycles({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE})
    assert not circles, f"files that import each other: {circles}"


def test_a_cycle_of_files_is_detected() -> None:
    late = "def f():\n    from leadre.data import a"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from leadre.data.a import A"
    for source in (late, typed):
        files = {"leadre/data/a.py": "from leadre.data.b import f", "leadre/data/b.py": source}
        assert cycles(files) == [["leadre/data/a.py", "leadre/data/b.py"]]
    assert not cycles({"leadre/data/a.py": "from leadre.data import b", "leadre/data/b.py": "import ast"})


def test_files_functions_and_classes_stay_short() -> None:
    long = [key for path in OURS for key in too_long(path.relative_to(ROOT).as_posix(), path.read_text())]
    assert sorted(long) == sorted(LONG_WITH_REASON), "too long without a reason, or a reason without need"


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (imports_point_left, "leadre/data/x.py", "import leadre.semid.trie"),
        (imports_point_left, "leadre/semid/x.py", "def f():\n    from leadre import tune"),
        (imports_point_left, "leadre/semid/x.py", "from ..generate.engine import run"),
        (imports_point_left, "leadre/metrics.py", "from leadre.data import histories"),
        (imports_point_left, "leadre/metrics.py", "from .data import histories"),
        (imports_point_left, "leadre/__init__.py", "from leadre.generate import batch"),
        (imports_point_left, "leadre/metrics.py", "from leadre.api import load"),
        (imports_point_left, "leadre/evaluate/x.py", "from leadre import api"),
        (imports_point_left, "leadre/data/x.py", "from leadre.__main__ import VERBS"),
        (imports_point_left, "leadre/data/x.py", "importlib.import_module('leadre.tune')"),
        (serve_parts_in_order, "leadre/serve/protocol/x.py", "from leadre.serve.events import tokens"),
        (serve_parts_in_order, "leadre/serve/ipc/x.py", "def f():\n    from leadre.serve import bidding"),
        (serve_parts_in_order, "leadre/serve/processes/x.py", "from leadre.serve import run"),
        (serving_has_one_clock, "leadre/serve/events/x.py", "import time\ntime.time_ns()"),
        (serving_has_one_clock, "leadre/auction/x.py", "from time import monotonic"),
        (nothing_unpickles, "leadre/data/x.py", "__import__('pickle')"),
        (no_import_is_hidden, "leadre/data/x.py", "importlib.import_module('leadre.' + name)"),
        (only_scale_imports_ray, "leadre/data/x.py", "def f():\n    import ray.data"),
        (nothing_prints, "leadre/data/x.py", "print('x')"),
        (nothing_prints, "leadre/data/x.py", "import sys\nsys.stdout.write('x')"),
        (no_kwargs_in_public, "leadre/data/x.py", "class A:\n    def __init__(self, **options): ..."),
        (no_catch_all, "leadre/data/x.py", "try: ...\nexcept Exception: ..."),
        (no_catch_all, "leadre/data/x.py", "try: ...\nexcept (OSError, BaseException): ..."),
        (no_catch_all, "leadre/data/x.py", "try: ...\nexcept: ..."),
        (nothing_unpickles, "leadre/data/x.py", "import pickle"),
        (nothing_unpickles, "leadre/data/x.py", "from torch import load"),
        (nothing_unpickles, "leadre/data/x.py", "torch.load(path, weights_only=True)"),
        (nothing_unpickles, "leadre/data/x.py", "np.load(path)"),
        (nothing_unpickles, "leadre/data/x.py", "np.load(path, allow_pickle=True)"),
        (nothing_unpickles, "leadre/data/x.py", "pd.read_pickle(path)"),
        (nothing_unpickles, "leadre/lm/x.py", "AutoModelForCausalLM.from_pretrained(path)"),
        (nothing_unpickles, "leadre/lm/x.py", "AutoTokenizer.from_pretrained(path, trust_remote_code=True)"),
    ],
)
def test_each_rule_bites(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, ast.parse(source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("leadre/tune/x.py", "from leadre.lm import backbone\nfrom leadre import metrics\nfrom . import losses"),
        ("leadre/__init__.py", "from leadre.api import load"),
        ("leadre/api/x.py", "from leadre.generate import batch"),
        ("leadre/serve/run_key.py", "from leadre.serve import run\nfrom leadre.serve.processes import roles"),
        ("leadre/serve/bidding/x.py", "from leadre.serve.events import tokens\nimport time\ntime.sleep(1)"),
        ("leadre/semid/x.py", "import numpy as np\nnp.load(path, allow_pickle=False)"),
        ("leadre/lm/x.py", "AutoModel.from_pretrained(path, use_safetensors=True)\ndef _f(**options): ..."),
        ("leadre/data/x.py", "try: ...\nexcept (OSError, ValueError): ..."),
    ],
)
def test_good_code_passes_every_rule(path: str, source: str) -> None:
    assert not [fault for rule in PACKAGE_RULES for fault in rule(path, ast.parse(source))]


def test_length_is_measured() -> None:
    body = "    x = 1\n"
    assert not list(too_long("a.py", "def f():\n" + body * 59))
    assert list(too_long("a.py", "def f():\n" + body * 60)) == ["a.py:f"]
    assert not list(too_long("a.py", "class A:\n" + body * 149))
    assert list(too_long("a.py", "class A:\n" + body * 150)) == ["a.py:A"]
    assert list(too_long("a.py", "x = 1\n" * 401)) == ["a.py"]


CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_parses_for_every_stage(path: Path) -> None:
    for verb, module in VERBS.items():
        effective = config.load(importlib.import_module(module).Config, section=verb, path=path, flags={})
        assert effective.run == path.stem, f"{path.name}: say run = {path.stem!r}, so that two configs never mix"


def test_every_run_script_names_configs_that_exist() -> None:
    scripts = sorted((ROOT / "runs").glob("*.sh"))
    assert scripts
    for script in scripts:
        for name in re.findall(r"configs/[\w.-]+\.toml", script.read_text()):
            assert (ROOT / name).is_file(), f"{script.name} wants {name}"


# The tree in ARCHITECTURE.md: a fenced block whose part from the line `leadre/` on is made of docstrings.
PAGE = ROOT / "ARCHITECTURE.md"
TREE = re.compile(r"(?<=\n)leadre/\n(?:    .*\n)+")


def summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[^.])\.(?:\s|$)", text, maxsplit=1)[0].replace("\n", " ")


def tree(folder: Path, depth: int = 0) -> Iterator[str]:
    """The lines of a package: its files, then its folders, stages in the order of the flow."""
    name = folder.name + "/"
    yield f"{'    ' * depth}{name:<{30 - 4 * depth}} {summary(folder / '__init__.py')}" if depth else name
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py" or not depth:
            yield f"{'    ' * (depth + 1)}{path.name:<{26 - 4 * depth}} {summary(path)}"
    inner = sorted(path.parent for path in folder.glob("*/__init__.py"))
    order = {name: place for place, name in enumerate(STAGES if not depth else SERVE_PARTS)}
    for path in sorted(inner, key=lambda path: order.get(path.name, -1)):
        yield from tree(path, depth + 1)


def with_tree(page: str) -> str:
    assert len(TREE.findall(page)) == 1, f"{PAGE.name} has one fenced tree with a line `leadre/`"
    return TREE.sub(lambda _: "\n".join(tree(ROOT / "leadre")) + "\n", page)


def test_the_tree_in_the_architecture_is_the_tree_on_disk() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tree(page), f"the tree is out of date; run: python {Path(__file__).relative_to(ROOT)}"
    ours = {path.name + "/" * path.is_dir() for path in ROOT.iterdir() if not path.name.startswith(".")}
    missing = sorted(name for name in ours - IGNORED if name not in page)
    assert not missing, f"{PAGE.name} does not show {missing}"


PAGES = [path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if path.name != "LOG.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/.:-])(?!work/)((?:[a-z_]\w*/)+[\w-]+\.(?:py|sh|toml|mjs|md))\b", text))
    homes = (page.parent, ROOT, ROOT / "leadre", ROOT / "leadre" / "serve")
    unknown = {name for name in names if not any((home / name).exists() for home in homes)}
    not_in_repository = {"configs/mine.toml", "configs/x.toml", "reference/http.md"}  # a reader's own; generated
    assert not unknown - not_in_repository, f"{page.name} names files that are not there"


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


IGNORED = {"work/", "dist/", "build/", "site/"}  # of .gitignore


if __name__ == "__main__":
    PAGE.write_text(with_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
