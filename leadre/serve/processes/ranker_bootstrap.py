"""Bootstrap of the ranker: the first start with a run's ranker publishes it; later ones check the published version."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path

from leadre import artifact, database, progress
from leadre.errors import ArtifactError
from leadre.serve.catalogue import database as records
from leadre.serve.catalogue import eligibility
from leadre.serve.paths import StatePaths
from leadre.serve.rankers import published
from leadre.serve.rankers.published import NONE, PublishedRankers


def publish(paths: StatePaths, train: Path, calibrate: Path) -> None:
    """Publish the run's ranker if no version was published before; else check that the current one is whole.

    A later ranker of the run is published by `leadre serve ranker` alone, so that a start never changes a rollback.
    InputError and ArtifactError for a ranker that cannot be served.
    """
    rankers = PublishedRankers(paths.rankers)
    if not rankers.history():
        if not train.exists():
            return
        if not calibrate.exists():
            progress.say(f"serve: {train} is not calibrated, so it prices no ad; run `leadre rank calibrate`")
            return
        publish_run(paths, train, calibrate)
        return
    version = rankers.current()
    if version == NONE:
        progress.say("serve: no ranker prices ads: `none` is the current version")
        return
    artifact.read(paths.rankers / version, published.PUBLISHED)
    with suppress(ArtifactError):  # of a training that is not finished
        trained = artifact.glance(train, artifact.RANKER)
        calibrated = artifact.glance(calibrate, artifact.CALIBRATION)
        if published.version_of(trained, calibrated) not in rankers.history():
            progress.say(f"serve: {train} is not the published ranker; `leadre serve ranker` publishes it")
    progress.say(f"serve: ranker {version} prices ads")


def publish_run(paths: StatePaths, train: Path, calibrate: Path) -> str:
    """Publish a ranker with its calibration; returns the version. Errors as from `PublishedRankers.publish`."""
    trained = artifact.read(train, artifact.RANKER)
    calibrated = artifact.read(calibrate, artifact.CALIBRATION)
    version = PublishedRankers(paths.rankers).publish(trained, calibrated, _objects(paths))
    progress.say(f"serve: ranker {version} of {trained.path} prices ads")
    return version


def _objects(paths: StatePaths) -> set[str]:
    """The objects of the catalogue."""
    with closing(database.connect(paths.manage_database, records.MIGRATIONS, read_only=True)) as connection:
        return {ad.object_id for ad in eligibility.load(connection).ads}
