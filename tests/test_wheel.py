"""The distributions: what wheel and sdist hold, their metadata, and that the wheel of the sdist is the wheel."""

import email
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from leadre import __version__

ROOT = Path(__file__).parents[1]
# Suffixes of files of the package; a wheel with any other has data by mistake.
SUFFIXES = {".py", ".html", ".j2", ".js", ".css", ".toml", ".LICENSE"}


def build(target: str, source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def contents(wheel: Path) -> dict[str, bytes]:
    """Name -> content of the files of a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"leadre-{__version__}.dist-info/METADATA"))


def test_wheel_holds_exactly_the_files_of_the_package(wheel: Path) -> None:
    paths = [path for path in (ROOT / "leadre").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths}
    assert contents(wheel) == files
    assert {Path(name).suffix for name in files if Path(name).name != "py.typed"} <= SUFFIXES
    needed = {"py.typed", "evaluate/report.html.j2", "creative/templates/banner.html", "serve/manage/assets/status.css"}
    assert {f"leadre/{name}" for name in needed} <= files.keys()


def test_sdist_makes_the_same_wheel_and_holds_no_run(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    top = {path.name for path in source.iterdir()}
    assert {"leadre", "tests", "runs", "configs", "docs", "Makefile", "constraints.txt", "LICENSE"} <= top
    assert not top & {"work", "node_modules", "dist", ".venv", "site"}
    assert not list(source.rglob("node_modules")) and not list(source.rglob("__pycache__"))
    assert contents(build("wheel", source, tmp_path / "wheel")) == contents(wheel)


def test_metadata_describes_the_release(wheel: Path) -> None:
    described = metadata(wheel)
    assert wheel.name == f"leadre-{__version__}-py3-none-any.whl"
    assert (described["Name"], described["Version"], described["Requires-Python"]) == ("leadre", __version__, ">=3.11")
    assert described["Description-Content-Type"] == "text/markdown"
    body = described.get_payload()
    assert isinstance(body, str) and body.startswith("# LEADRE\n")
    classifiers = described.get_all("Classifier", [])
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(classifiers)
    licenses = set(described.get_all("License-File", []))
    assert licenses >= {"LICENSE", "leadre/serve/manage/assets/htmx-4.0.1.LICENSE"}


def test_changelog_has_a_dated_section_of_this_version() -> None:
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:3] == "## "]
    assert headings[0] == "## [Unreleased]"
    assert headings[1].startswith(f"## [{__version__}] - 20")
