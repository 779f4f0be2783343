"""The command line: help without heavy imports, errors of one line, config from file and flags."""

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from leadre import __main__ as cli
from leadre import __version__, config
from leadre.errors import ArtifactError

ROOT = Path(__file__).parents[1]
HEAVY = ("numpy", "polars", "pyarrow", "torch", "transformers", "rich", "matplotlib", "duckdb", "faiss", "scipy")


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    levels: int = config.option(3, "levels of a semantic ID")
    path: Path | None = config.option(None, "folder of the logs")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configs with which `semid` ran, replaced by a stage that records them."""
    configs: list[Config] = []
    stage = ModuleType("a_stage", "A stage for tests.\n\nMore about it.")
    vars(stage).update(Config=Config, run=configs.append)
    monkeypatch.setitem(sys.modules, "a_stage", stage)
    monkeypatch.setitem(cli.VERBS, "semid", "a_stage")
    return configs


def test_help_imports_few_modules() -> None:
    """The time of --help is that of its imports: 0.06 s of processor time for about 70 modules."""
    code = "import sys; from leadre.__main__ import main; main(['--help']); print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 150


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys; from leadre.__main__ import main; main(['--help']); print(set({HEAVY}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_help_lists_each_verb_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, module in cli.VERBS.items():
        docstring = importlib.import_module(module).__doc__
        assert docstring, f"{module} has no docstring"
        assert f"  {config.command_of(verb):<20}{docstring.splitlines()[0]}\n" in text


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_explains_every_field(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    stage = importlib.import_module(cli.VERBS[verb])
    assert issubclass(stage.Config, config.Common) and callable(stage.run)
    assert cli.main([*config.command_of(verb).split(), "--help"]) == 0
    text = capsys.readouterr().out
    for row in config.describe(stage.Config):
        assert row.help, f"{verb}: field {row.field} has no help text; declare it by config.option"
        assert f"--{row.field.replace('_', '-')} " in text
    assert cli.main([*config.command_of(verb).split(), "--show"]) == 0
    assert "run = demo\n" in capsys.readouterr().out


def test_closed_output_pipe_is_no_error() -> None:
    for argv in ("--help", "serve --help", "tune --show"):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "leadre", *argv.split()]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("old", ["tune-dpo", "tune --stage dpo", "tune --stage=dpo"])
def test_old_forms_of_a_subcommand_work_and_name_the_new_one(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "dpo", "--seed", "3", "--show"]) == 0
    shown = capsys.readouterr()
    assert "seed = 3\n" in shown.out and "beta = " in shown.out and shown.err == ""
    assert cli.main([*old.split(), "--seed", "3", "--show"]) == 0
    shown_by_old_form = capsys.readouterr()
    assert shown_by_old_form.out == shown.out
    assert shown_by_old_form.err.count("\n") == 1
    assert shown_by_old_form.err.endswith("write `leadre tune dpo`\n")


def test_old_form_of_the_first_stage_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "--show"]) == 0
    shown = capsys.readouterr().out
    assert cli.main(["tune", "--stage", "sft", "--show"]) == 0
    out, err = capsys.readouterr()
    assert out == shown and err.endswith("write `leadre tune`\n")


def test_help_of_a_verb_names_its_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"`leadre serve {part}`" in out for part in ("key", "backup", "restore"))


def test_verb_runs_with_file_and_flags(calls: list[Config], tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("seed = 3\n[semid]\nlevels = 4\n")
    argv = ["semid", "--config", str(tmp_path / "x.toml"), "--path=a=b", "--run", "one", "--levels", "5"]
    assert cli.main(argv) == 0
    assert calls == [Config(seed=3, levels=5, path=Path("a=b"), run="one")]
    assert cli.main(["semid", "--seed", "-1"]) == 0
    assert calls[-1].seed == -1


def test_show_prints_the_effective_config_and_runs_nothing(
    calls: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["semid", "--levels", "5", "--show"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run = demo",
        "work = work",
        "seed = 0",
        "threads = 0",
        "levels = 5",
        "path = none",
    ]
    assert calls == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["semidd"], "unknown verb 'semidd'; the nearest is 'semid'"),
        (["tune", "dqo"], "unknown subcommand 'dqo' of `leadre tune`; the nearest is `leadre tune dpo`"),
        (["serve", "--stage", "backap"], "the nearest is `leadre serve backup`"),
        (["tune", "dpo", "--stage", "dpo"], "--stage dpo: leave it out; `leadre tune dpo` names the subcommand"),
        (
            ["serve", "key", "--stage=key", "--help"],
            "--stage key: leave it out; `leadre serve key` names the subcommand",
        ),
        (["semid", "--level", "3"], "unknown key 'level'; the nearest is 'levels'"),
        (["semid", "--levels"], "--levels needs a value"),
        (["semid", "--levels", "--show"], "--levels needs a value"),
        (["semid", "levels=3"], "'levels=3' is not a flag"),
        (["semid", "--levels", "x"], "must be int, got 'x'"),
        (["semid", "--config", "no-such.toml"], "no-such.toml: cannot read"),
    ],
)
def test_invalid_command_line_gives_one_line_and_status_2(
    calls: list[Config], capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("leadre: ") and err.count("\n") == 1
    assert message in err
    assert calls == []


def test_errors_of_a_stage_set_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage_that_raises(error: BaseException) -> ModuleType:
        def run(effective: Config) -> None:
            raise error

        stage = ModuleType("a_stage", "A stage for tests.")
        vars(stage).update(Config=Config, run=run)
        return stage

    monkeypatch.setitem(cli.VERBS, "semid", "a_stage")
    monkeypatch.setitem(sys.modules, "a_stage", stage_that_raises(ArtifactError("work/demo/data: run `leadre data`")))
    assert cli.main(["semid"]) == 2
    assert capsys.readouterr().err == "leadre: work/demo/data: run `leadre data`\n"
    monkeypatch.setitem(sys.modules, "a_stage", stage_that_raises(KeyboardInterrupt()))
    assert cli.main(["semid"]) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "a_stage", stage_that_raises(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        cli.main(["semid"])


def test_missing_package_of_a_package_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "needs_more.py").write_text('"""A stage."""\nimport no_such_package\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.VERBS, "semid", "needs_more")
    assert cli.main(["semid"]) == 2
    assert capsys.readouterr().err == (
        "leadre: 'no_such_package' is missing, which an installed package needs; `pip check` names both\n"
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"leadre {__version__}\n"
