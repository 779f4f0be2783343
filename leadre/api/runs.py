"""Runs from Python: `load` opens the folder of a run, whose stages are read when they are first used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import artifact, config, extras
from leadre.api.codebook import Codebook, open_codebook
from leadre.api.recommender import BEAM, Recommendations, Recommender, channel_rank
from leadre.api.users import Market, Time, User
from leadre.artifact import Artifact
from leadre.clock import EPOCH
from leadre.data import histories
from leadre.data.histories import REQUEST_ORDER, SPLITS
from leadre.data.moment import Moment
from leadre.errors import InputError
from leadre.tune.latest import latest


@dataclass(frozen=True, kw_only=True)
class Request:
    """A logged request: a moment at which an ad could be shown to a user.

    ``live`` are the IDs of the ads that could be shown, ``acted_on`` of those that the user acted on: its labels.
    """

    request_id: str
    user_id: str
    at: datetime
    placement_id: str | None
    live: tuple[str, ...] = field(repr=False)
    acted_on: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, from `load`. Each stage is read once, when it is first used; load again after a stage has run.

    ``path``: its folder. ``tables``: the artifact of `leadre data`; ``market`` is its content, for this API alone.
    """

    path: Path
    tables: Artifact
    market: Market

    def __repr__(self) -> str:
        logs = self.market.logs
        return f"Run({self.path}: {len(logs.ads):,} ads, {len(logs.users):,} users, {len(logs.at_us_E):,} events)"

    @property
    def ads(self) -> pl.DataFrame:
        """The ads table."""
        return self.market.logs.ads

    @property
    def users(self) -> pl.DataFrame:
        """The users table: IDs and profiles."""
        return self.market.logs.users

    def user(self, user_id: str) -> User:
        """A user of the tables as plain data: all successes and the profile. Raises InputError for an unknown ID."""
        return self.market.user(user_id)

    def requests(self, split: Literal["train", "valid", "test"] = "test") -> list[Request]:
        """The logged requests of a split, by user and time. Raises InputError for another split."""
        if split not in SPLITS:
            raise InputError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
        logs = self.market.logs
        frame = pl.read_parquet(self.tables.path / "requests.parquet").sort(REQUEST_ORDER)
        ids = frame.select("request_id", "user_id", "placement_id").rows()
        ad_ids = np.array(logs.ads["ad_id"].to_list(), object)
        live_of: dict[int, tuple[str, ...]] = {}  # requests with equal live sets share the IDs
        requests = []
        for r in logs.requests_of(SPLITS.index(split)).tolist():
            request_id, user_id, placement_id = ids[r]
            live_set = int(logs.inventories.set_R[r])
            if live_set not in live_of:
                live_of[live_set] = tuple(ad_ids[logs.inventory(r)])
            requests.append(
                Request(
                    request_id=request_id,
                    user_id=user_id,
                    at=EPOCH + timedelta(microseconds=int(logs.request_at_us_R[r])),
                    placement_id=placement_id,
                    live=live_of[live_set],
                    acted_on=tuple(ad_ids[logs.relevant(r)[0]]),
                )
            )
        return requests

    def recommend(
        self,
        user: str | User,
        *,
        at: Time | None = None,
        live: Iterable[str] | None = None,
        placement_id: str | None = None,
        k: int = 10,
        new: bool = False,
    ) -> Recommendations:
        """Rank the live ads for a user by the run's last model; see `Recommender.recommend`."""
        return self._latest.recommend(user, at=at, live=live, placement_id=placement_id, k=k, new=new)

    def model(self, name: Literal["latest", "sft", "dpo"] = "latest", *, beam: int = BEAM) -> Recommender:
        """The language model of `leadre tune` (sft) or `leadre tune dpo` (dpo); the latest is the one that serve uses.

        ``beam``: beams of a search, at least ``k`` are used. A beam as wide as the number of live ads scores all of
        them. Raises ArtifactError, which names the command to run, if a stage is missing.
        """
        if name not in ("latest", "sft", "dpo"):
            raise InputError(f"model {name!r}: must be latest, sft or dpo")
        if beam < 1:
            raise InputError(f"beam {beam}: must be at least 1")
        folder = latest(self._config) if name == "latest" else self.path / f"tune-{name}"
        model = artifact.read(folder, artifact.MODEL)
        extras.require("a model", "generate")
        from leadre.generate import batch  # imports torch, which tables, channels and codebook do not need
        from leadre.tune import model as models

        models.check_ids(model, self._codebook)
        searcher = batch.load(self.tables, self._codebook, model, training=False, moments=self.market.moments)

        def rank(moment: Moment, new: bool, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            ranked = searcher.answer_one(moment, "new" if new else "all", max(beam, k))
            ads, scores = batch.ads_of(moment.inventory, ranked, self._tie_key, k)
            return np.array(ads, np.int64), np.array(scores, np.float64)

        return Recommender(
            name=folder.name.removeprefix("tune-"), market=self.market, codes_OL=searcher.live.codes_OL, rank=rank
        )

    def channel(self, name: str) -> Recommender:
        """A retrieval channel: popularity, own_frequency, item_knn, als, sasrec and others of `leadre evaluate`.

        It is read from ``channels/<name>`` of the run; if it is not there or not current, it is fitted on training time
        and written first. Raises InputError, which names the nearest channel, for an unknown name.
        """
        extras.require("a channel", "evaluate")
        from leadre.generate.channels import fitted
        from leadre.generate.channels.registry import CHANNELS

        if name not in CHANNELS:
            raise InputError(
                f"unknown channel {name!r}; the nearest is {config.nearest(name, CHANNELS)!r} of {', '.join(CHANNELS)}"
            )
        ids = self.codebook.ids
        logs = self.market.logs
        folder = self.path / "channels" / name
        channel = fitted.load(folder, name, logs, self.tables, seed=self.tables.meta["seed"], threads=0)
        codes_OL = ids.codes_OL[ids.rows(logs.objects["object_id"].to_list())]
        rank = channel_rank(channel, self._tie_key)
        return Recommender(name=name, market=self.market, codes_OL=codes_OL, rank=rank)

    @cached_property
    def codebook(self) -> Codebook:
        """The semantic IDs of `leadre semid`. Raises ArtifactError, which names that command, if they are missing."""
        return open_codebook(self._codebook)

    @cached_property
    def _codebook(self) -> Artifact:
        return artifact.read(self.path / "semid", artifact.CODEBOOK)

    @cached_property
    def _latest(self) -> Recommender:
        return self.model()

    @cached_property
    def _config(self) -> config.Common:
        return config.Common(run=self.path.name, work=self.path.parent)

    @cached_property
    def _tie_key(self) -> NDArray[np.int64]:
        """Order of ads with equal scores, as in `leadre generate` and `leadre evaluate` with the seed of the tables."""
        return np.random.default_rng(self.tables.meta["seed"]).permutation(len(self.market.logs.ads))


def load(path: str | Path) -> Run:
    """Open the folder of a run, such as ``work/demo``.

    Reads the tables; codebook, model and channels are read when they are first used. Raises InputError if the folder
    is no run, and ArtifactError, which names the command to run, for a stage that is missing or damaged.
    """
    folder = Path(path)
    if not (folder / "data").exists():
        raise InputError(
            f"{folder}: is not the folder of a run{_runs_near(folder)}; `leadre data --run NAME` begins one"
        )
    tables = artifact.read(folder / "data", artifact.TABLES)
    return Run(folder, tables, Market(histories.load(tables)))


def _runs_near(folder: Path) -> str:
    """A part of a message: the runs in a folder, or else beside it."""
    for place in (folder, folder.absolute().parent):
        names = sorted(data.parent.name for data in place.glob("*/data"))
        if names:
            return f", but {place} has the runs {', '.join(names)}"
    return ""
