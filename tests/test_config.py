"""config.load: defaults < shared TOML keys < TOML [section] < flags; errors name key, value and the nearest name."""

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Literal

import pytest

from leadre import config
from leadre.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Config(config.Common):
    source: Literal["journey", "files"] = config.option("journey", "where the logs come from")
    path: Path | None = config.option(None, "folder of the logs")
    share: float = config.option(0.5, "share of bad rows that stops the run")
    levels: int = config.option(3, "levels of a semantic ID")
    strict: bool = config.option(False, "stop at the first bad row")
    sizes: tuple[int, ...] = config.option((256, 256), "codes per level")


def load(tmp_path: Path, toml: str | None = None, section: str = "semid", **flags: str) -> Config:
    path = None
    if toml is not None:
        path = tmp_path / "run.toml"
        path.write_text(toml, encoding="utf-8")
    return config.load(Config, section=section, path=path, flags=flags)


def test_flags_override_section_shared_keys_and_defaults(tmp_path: Path) -> None:
    toml = 'run = "file"\nseed = 7\n[semid]\nseed = 8\nlevels = 4\nshare = 1\n[tune]\nlevels = 9\n'
    loaded = load(tmp_path, toml, levels="5")
    assert (loaded.run, loaded.seed, loaded.levels, loaded.share, loaded.threads) == ("file", 8, 5, 1.0, 0)
    assert isinstance(loaded.share, float)


def test_toml_values_are_converted_to_field_types(tmp_path: Path) -> None:
    toml = '[semid]\nsource = "files"\npath = "logs"\nstrict = true\nsizes = [4, 8]\n'
    loaded = load(tmp_path, toml)
    assert load(tmp_path, toml.replace("logs", "none")).path is None
    assert (loaded.source, loaded.path, loaded.strict, loaded.sizes) == ("files", Path("logs"), True, (4, 8))


def test_flags_take_dashes_or_underscores_lists_and_none(tmp_path: Path) -> None:
    loaded = config.load(
        Config,
        section="semid",
        path=None,
        flags={"--sizes": "4, 8,", "strict": "true", "path": "none", "share": "1e-3", "--source": "files"},
    )
    assert (loaded.sizes, loaded.strict, loaded.path, loaded.share, loaded.source) == (
        (4, 8),
        True,
        None,
        1e-3,
        "files",
    )
    with pytest.raises(FrozenInstanceError):
        loaded.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[semid]\nlevel = 3\n", r"\[semid\]: unknown key 'level'; the nearest is 'levels'"),
        ("sead = 3\n", "unknown key 'sead'; the nearest is 'seed'"),
        ("levels = 3\n", "top of the file: unknown key 'levels'"),  # an option of a stage belongs into its section
        ("[semids]\nlevels = 3\n", "unknown section 'semids'; the nearest is 'semid'"),
        ("[tuna]\n", "unknown section 'tuna'; the nearest is 'tune'"),
        ("[semid.levels]\nx = 1\n", "'levels': must be int"),
        ('[semid]\nlevels = "3"\n', "must be int, got '3'"),
        ("[semid]\nlevels = 3.0\n", r"must be int, got 3\.0"),
        ("[semid]\nlevels = true\n", "must be int, got True"),
        ("[semid]\nshare = nan\n", "must be float, got nan"),
        (f"[semid]\nshare = {'9' * 400}\n", "must be float"),
        ("[semid]\nstrict = 1\n", "must be bool, got 1"),
        ("[semid]\nsource = 'amazon'\n", r"must be journey \| files, got 'amazon'"),
        ("[semid]\nsizes = [4, '8']\n", "'sizes': must be int, got '8'"),
        ("[semid]\nsizes = '4,8'\n", "must be list of int"),
        ("[semid\n", "not valid TOML"),
        ("[semid]\nlevels = 3\nlevels = 4\n", "not valid TOML"),
    ],
)
def test_error_of_a_file_names_file_and_section(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, toml)
    assert "run.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"levles": "3"}, "command line: unknown key 'levles'; the nearest is 'levels'"),
        ({"levels": "three"}, "command line, --levels: must be int, got 'three'"),
        ({"strict": "yes"}, "must be bool"),
        ({"share": "inf"}, "must be float"),
        ({"source": "none"}, r"must be journey \| files"),
        ({"levels": "9" * 5000}, "must be int"),
    ],
)
def test_invalid_flag_is_an_error(tmp_path: Path, flags: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, **flags)


def test_missing_or_binary_config_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check --config"):
        config.load(Config, section="semid", path=tmp_path / "no.toml", flags={})
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not valid TOML"):
        config.load(Config, section="semid", path=tmp_path / "bad.toml", flags={})


def test_field_without_default_is_required() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Required(config.Common):
        path: Path

    with pytest.raises(InputError, match="'path' has no default"):
        config.load(Required, section="data", path=None, flags={})


def test_describe_lists_own_fields_first_and_spells_defaults_as_flags() -> None:
    rows = config.describe(Config)
    assert [row.field for row in rows][-4:] == ["run", "work", "seed", "threads"]
    assert rows[0] == ("source", "journey | files", "", "journey", "where the logs come from")
    assert rows[1] == ("path", "Path | none", "", "none", "folder of the logs")
    assert rows[-6][:4] == ("strict", "bool", "", "false")
    assert rows[-5][:4] == ("sizes", "list of int", "", "256,256")


def test_shown_values_load_as_flags() -> None:
    loaded = Config(sizes=(1, 2), path=None, strict=True, share=0.1)
    flags = {row.field: config.show(getattr(loaded, row.field)) for row in config.describe(Config)}
    assert config.load(Config, section="semid", path=None, flags=flags) == loaded


def test_folder_is_work_run_step_and_run_stays_below_work() -> None:
    assert Config(run="a-1").folder("tune-sft") == Path("work/a-1/tune-sft")
    for run in ("", "..", "a/b", "/tmp", ".hidden"):
        with pytest.raises(InputError, match="names a folder"):
            Config(run=run).folder("data")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    epochs: int = config.option(3, "passes over the data", at_least=1)
    rate: float = config.option(0.1, "learning rate", above=0, below=1)
    seed: int = 0  # no option: it would have the name of a shared key


@dataclass(frozen=True, kw_only=True)
class Nested(config.Common):
    layers: int = config.option(4, "layers of the body", at_least=0)
    schedule: Schedule = config.group(Schedule(epochs=5))
    sizes: tuple[int, ...] = config.option((8, 4), "codes per level", at_least=2)


def nested(**flags: str) -> Nested:
    return config.load(Nested, section="tune", path=None, flags=flags)


def test_options_of_a_group_have_flat_names(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[tune]\nepochs = 7\n")
    loaded = config.load(Nested, section="tune", path=tmp_path / "x.toml", flags={"--rate": "0.5", "--seed": "9"})
    assert (loaded.schedule, loaded.seed, nested().schedule) == (Schedule(epochs=7, rate=0.5), 9, Schedule(epochs=5))
    rows = {row.field: row for row in config.describe(Nested)}
    assert [*rows][:4] == ["layers", "epochs", "rate", "sizes"]
    assert rows["epochs"] == ("epochs", "int", "at least 1", "5", "passes over the data")
    with pytest.raises(InputError, match="unknown key 'schedule'"):
        nested(schedule="x")


def test_flat_lists_all_options_and_changed_replaces_them() -> None:
    flat = {"run": "demo", "work": Path("work"), "seed": 0, "threads": 0}
    flat |= {"layers": 4, "epochs": 5, "rate": 0.1, "sizes": (8, 4)}
    assert Nested().flat() == flat
    changed = Nested().changed({"epochs": 2, "rate": 0.2, "layers": 1})
    assert changed.flat() == flat | {"epochs": 2, "rate": 0.2, "layers": 1}
    with pytest.raises(KeyError):
        Nested().changed({"epoch": 2})


def test_two_options_of_one_name_fail_an_assertion() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Twice(config.Common):
        epochs: int = config.option(1, "passes")
        schedule: Schedule = config.group(Schedule())

    with pytest.raises(AssertionError, match="Twice: two options have the name 'epochs'"):
        config.describe(Twice)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("epochs", "0", "command line, --epochs: must be at least 1, got 0"),
        ("rate", "0", "command line, --rate: must be above 0 and below 1, got 0.0"),
        ("rate", "1", "must be above 0 and below 1, got 1.0"),
        ("sizes", "8,1", "command line, --sizes: must be at least 2, got 8,1"),
        ("threads", "-1", "command line, --threads: must be at least 0, got -1"),
    ],
)
def test_values_out_of_range_are_errors(flag: str, value: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        nested(**{flag: value})
    assert message in str(caught.value)
    if flag != "threads":
        (tmp_path / "x.toml").write_text(f"[tune]\n{flag} = {f'[{value}]' if ',' in value else value}\n")
        with pytest.raises(InputError, match=rf"x\.toml \[tune\], key '{flag}': must be"):
            config.load(Nested, section="tune", path=tmp_path / "x.toml", flags={})


def test_range_includes_its_edges_and_applies_to_configs_in_code() -> None:
    assert nested(epochs="1", rate="0.999", sizes="2,2", threads="0").sizes == (2, 2)
    with pytest.raises(InputError, match="epochs: must be at least 1, got 0"):
        Nested(schedule=Schedule(epochs=0))
