"""Published rankers: versions of ranker and calibration in the state folder, one of them current.

A version is a copy of the artifacts of `leadre rank train` and `rank calibrate`, so that a new training in the work
folder changes no bid. Running workers follow `current.json`. The last versions are kept, so that one can be made
current again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from leadre import artifact
from leadre.artifact import Artifact
from leadre.errors import ArtifactError, InputError
from leadre.rank import calibrate
from leadre.rank.calibrate import Calibration
from leadre.serve.events import durable

if TYPE_CHECKING:
    from leadre.rank.ranker import TrainedRanker

PUBLISHED = artifact.Kind("published-ranker", 1)
CURRENT, RANKER, CALIBRATION = "current.json", "ranker", "calibration"  # the last two are folders of a version
LOCK = ".lock"
NONE = "none"  # in place of a version: no ranker
KEPT = 5  # versions in the history


class PublishedRankers:
    """The versions in a folder. `current` reads the disk; readers may be in any process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def history(self) -> list[str]:
        """The versions that were current, newest last; the last one is current. InputError for a damaged file."""
        path = self.folder / CURRENT
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[str])
        except FileNotFoundError:
            return []
        except msgspec.MsgspecError as error:
            raise InputError(f"{path}: damaged ({error}); delete it and publish a ranker again") from error

    def current(self) -> str:
        """The current version, or `NONE`."""
        return next(reversed(self.history()), NONE)

    def published_at_us(self, version: str) -> int:
        """When a version was published, which the time of its files keeps. InputError if it is missing."""
        try:
            return (self.folder / version / artifact.META).stat().st_mtime_ns // 1000
        except FileNotFoundError as error:
            raise InputError(f"{self.folder / version}: is missing; publish a ranker or roll back") from error

    def publish(self, trained: Artifact, calibrated: Artifact, objects: Collection[str]) -> str:
        """Copy ranker and calibration, and make them current; returns the version.

        InputError, before anything is written, for parts that do not fit each other, or a ranker that knows none of
        the ``objects`` of the catalogue.
        """
        _check_pair(trained, calibrated)
        version = version_of(trained, calibrated)
        with self._locked():
            if not self._is_whole(version):
                with artifact.create(
                    self.folder / version, kind=PUBLISHED, config={}, seed=0, parents=[trained, calibrated]
                ) as temporary:
                    shutil.copytree(trained.path, temporary / RANKER, ignore=shutil.ignore_patterns(artifact.META))
                    (temporary / CALIBRATION).mkdir()
                    shutil.copy(calibrated.path / calibrate.FILE, temporary / CALIBRATION)
                    _check_objects(_loaded(temporary)[0].object_ids, objects, trained)
            self._set_current(version)
        return version

    def switch(self, version: str) -> None:
        """Make a kept version current, or `NONE`. InputError if it is not kept, ArtifactError if it is damaged."""
        with self._locked():
            if version != NONE and version not in self.history():
                kept = ", ".join(dict.fromkeys(self.history())) or "none at all"
                raise InputError(f"there is no ranker of version {version!r}, only {kept}")
            if version != NONE:
                artifact.read(self.folder / version, PUBLISHED)
            self._set_current(version)

    def rollback(self) -> str:
        """Make the version current that was so before; returns it. Errors as from `switch`."""
        with self._locked():
            history = self.history()
            if len(history) < 2:
                raise InputError(f"no ranker was current before {self.current()!r}; there is nothing to roll back to")
            if history[-2] != NONE:
                artifact.read(self.folder / history[-2], PUBLISHED)
            self._write(history[:-1])
        return history[-2]

    def load(self, version: str) -> tuple[TrainedRanker, Calibration]:
        """A version in memory. ArtifactError if it is damaged or missing, InputError if it is of another release."""
        return _loaded(artifact.read(self.folder / version, PUBLISHED).path)

    def _set_current(self, version: str) -> None:
        history = self.history()
        if [version] != history[-1:]:
            self._write([*history, version][-KEPT:])

    def _write(self, history: Sequence[str]) -> None:
        durable.replace(self.folder / CURRENT, msgspec.json.encode(list(history)))
        for path in self.folder.iterdir():
            if path.is_dir() and not path.name.startswith(".") and path.name not in history:
                shutil.rmtree(path)

    def _is_whole(self, version: str) -> bool:
        try:
            artifact.read(self.folder / version, PUBLISHED)
        except ArtifactError:
            return False
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """No other process changes the versions meanwhile."""
        with durable.exclusive(self.folder / LOCK, wait=True):
            yield


def version_of(trained: Artifact, calibrated: Artifact) -> str:
    """The version of a ranker with its calibration: equal for equal content."""
    return hashlib.blake2b(f"{trained.hash} {calibrated.hash}".encode(), digest_size=6).hexdigest()


def _check_pair(trained: Artifact, calibrated: Artifact) -> None:
    if trained.hash not in calibrated.meta["parents"].values():
        raise InputError(
            f"{calibrated.path}: calibrates another ranker than {trained.path}; run `leadre rank calibrate` again"
        )


def _check_objects(known: Sequence[str], objects: Collection[str], trained: Artifact) -> None:
    if objects and not set(known) & set(objects):
        raise InputError(
            f"{trained.path}: knows {len(known):,} objects, and none of the {len(set(objects)):,} in the catalogue;"
            " it was trained on other tables: train a ranker on the logs of these ads"
        )


def _loaded(folder: Path) -> tuple[TrainedRanker, Calibration]:
    from leadre.rank import ranker  # LightGBM, which a bidder without a ranker does not load

    return ranker.load(folder / RANKER), calibrate.load(folder / CALIBRATION)
