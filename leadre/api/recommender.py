"""Recommendations of a language model or of a retrieval channel, in one form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import metrics
from leadre.api.users import Market, Time, User
from leadre.clock import EPOCH
from leadre.data.moment import Moment
from leadre.errors import InputError
from leadre.generate.run import Config as GenerateConfig
from leadre.semid.quantiser import Codes
from leadre.units import US_PER_S

if TYPE_CHECKING:  # the channels import torch
    from leadre.generate.channels.contract import Channel

BEAM = GenerateConfig.beam
TITLE_CHARS = 60  # of a title in a printed table
# (moment, new, k) -> (rows of at most k live ads, best first; their scores)
Rank: TypeAlias = Callable[[Moment, bool, int], tuple[NDArray[np.int64], NDArray[np.float64]]]


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended ad.

    ``score`` is the log-probability of the ad's object among the live objects, or the score of a channel in the
    channel's own unit. ``semantic_id`` are the codes of the object, coarse to fine.
    """

    ad_id: str
    object_id: str
    title: str
    score: float
    semantic_id: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Recommendations(Sequence[Recommendation]):
    """Ranked ads, best first; printed as a table.

    ``method`` is the recommender's name, ``at`` the time for which it ranked ``live`` ads.
    """

    ads: tuple[Recommendation, ...]
    method: str
    at: datetime
    live: int

    def __len__(self) -> int:
        return len(self.ads)

    @overload
    def __getitem__(self, index: int) -> Recommendation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Recommendation]: ...

    def __getitem__(self, index: int | slice) -> Recommendation | Sequence[Recommendation]:
        return self.ads[index]

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.ads)

    @property
    def frame(self) -> pl.DataFrame:
        """One row for each ad, best first; the columns are the fields of `Recommendation`."""
        schema = {"ad_id": pl.String, "object_id": pl.String, "title": pl.String, "score": pl.Float64}
        rows = [(ad.ad_id, ad.object_id, ad.title, ad.score, list(ad.semantic_id)) for ad in self.ads]
        return pl.DataFrame(rows, schema=schema | {"semantic_id": pl.List(pl.Int64)}, orient="row")

    def __repr__(self) -> str:
        head = f"{len(self.ads)} of {self.live:,} live ads at {self.at:%Y-%m-%d %H:%M} UTC, ranked by {self.method}"
        cells = [("", "score", "ad_id", "semantic ID", "title")]
        for rank, ad in enumerate(self.ads, start=1):
            title = ad.title if len(ad.title) <= TITLE_CHARS else ad.title[: TITLE_CHARS - 3] + "..."
            cells.append((str(rank), f"{ad.score:.4g}", ad.ad_id, "-".join(map(str, ad.semantic_id)), title))
        rank_width, score_width, *widths = (max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1])
        lines = [
            f"{rank:>{rank_width}}  {score:>{score_width}}  {ad_id:<{widths[0]}}  {path:<{widths[1]}}  {title}"
            for rank, score, ad_id, path, title in cells
        ]
        return "\n".join([head, *lines])


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommender:
    """Ranks live ads for users; from `Run.model` or `Run.channel`.

    ``codes_OL``: semantic IDs of the objects of the tables.
    """

    name: str
    market: Market = field(repr=False)
    codes_OL: Codes = field(repr=False)
    rank: Rank = field(repr=False)

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
        """Rank the live ads for a user at a time: at most ``k`` ads, best first.

        - ``user``: the ID of a user of the tables, or a `User` described by events.
        - ``at``: the time of the request. Events at or after it are left out: the future never leaks. By default just
          after the last event of the tables and of the user.
        - ``live``: IDs of the ads that may be shown. By default those that were live in a request of the 7 days before
          ``at`` and are neither paused nor ended.
        - ``placement_id``: the placement of the request; unknown by default.
        - ``new``: leave out ads whose object is in the user's history.

        Ads of one object share its score; a fixed random order breaks the tie. Raises InputError for an unknown user,
        item, ad, placement or profile column, and for a value out of range. The weights have learned from training
        time: for an ``at`` before the first validation request the history is cut, the weights are not.
        """
        if k < 1:
            raise InputError(f"k {k}: must be at least 1")
        moment = self.market.moment(user, at=at, live=live, placement_id=placement_id)
        ads, scores = self.rank(moment, new, k)
        logs = self.market.logs
        objects = logs.ad_object_A[ads]
        columns = (
            *(logs.ads[name].gather(ads).to_list() for name in ("ad_id", "object_id", "title")),
            scores.tolist(),
            map(tuple, self.codes_OL[objects].tolist()),
        )
        ranked = tuple(
            Recommendation(ad_id=ad_id, object_id=object_id, title=title, score=score, semantic_id=path)
            for ad_id, object_id, title, score, path in zip(*columns, strict=True)
        )
        now = EPOCH + timedelta(seconds=moment.at_us // US_PER_S)
        return Recommendations(ads=ranked, method=self.name, at=now, live=len(moment.inventory.ads))


def channel_rank(channel: Channel, key_A: NDArray[np.int64]) -> Rank:
    """The ranking of a channel, as `leadre evaluate` computes it; ``key_A`` orders equal scores."""

    def rank(moment: Moment, new: bool, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        (scores_I,) = channel.score([moment])
        inventory = moment.inventory
        is_eligible = ~np.isin(inventory.ad_object, moment.history.object_E) if new else slice(None)
        ads = inventory.ads[is_eligible].astype(np.int64)
        scores = scores_I[is_eligible].astype(np.float64)
        best = metrics.top_places(scores, key_A[ads], k)
        return ads[best], scores[best]

    return rank
