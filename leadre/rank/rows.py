"""Training rows of a ranker: requests of a period with their candidates and labels, negatives sampled.

The features of a row come from tables that end before its request: at the begin of the period (frozen), or at the begin
of the request's week (fresh). Rows of one request stay together, so its user is computed once in training too.

Letters: R requests, C candidates of a request, H labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import progress
from leadre.artifact import Artifact
from leadre.data import counts
from leadre.data.collaborative import Collaborative
from leadre.data.counts import CountTables
from leadre.data.histories import I32, I64, REQUEST_ORDER, SPLITS, Logs, last_of_users
from leadre.data.moment import of_requests
from leadre.errors import InputError
from leadre.rank.inputs import RequestInputs, Vocabulary, inputs
from leadre.rank.spec import FeatureSpec
from leadre.units import US_PER_DAY

Bools = NDArray[np.bool_]
US_PER_WEEK = 7 * US_PER_DAY


@dataclass(frozen=True, kw_only=True)
class Example:
    """A request's rows: ``ads`` [C], their labels [C, H], and the inputs of a ranker.

    ``weight_CH``: factors of the log loss of each label, 0 where it is not known; None for 1 everywhere.
    ``teacher_C``: log-odds of the final ranker, which a coarse ranker is distilled from. ``target_CH`` and ``bag_C``:
    soft labels and bags, which `proportions` trains on in place of ``label_CH``.
    """

    request: int
    ads: I32
    label_CH: Bools
    inputs: RequestInputs
    weight_CH: NDArray[np.float32] | None = None
    teacher_C: NDArray[np.float32] | None = None
    target_CH: NDArray[np.float32] | None = None
    bag_C: NDArray[np.int64] | None = None


class Popularity:
    """The count tables that a request may read.

    ``fit`` of `counts` with the same collaborative scores: once, before ``from_us`` (frozen), or for each week (fresh).
    """

    def __init__(self, logs: Logs, collaborative: Collaborative, from_us: int, *, is_fresh: bool) -> None:
        self._logs = logs
        self._collaborative = collaborative
        self._from_us = from_us
        self._is_fresh = is_fresh
        self._tables: dict[int, CountTables] = {}

    def at(self, at_us: int) -> CountTables:
        """The tables for a request at a time, not before ``from_us``."""
        assert at_us >= self._from_us, (at_us, self._from_us)
        week = (at_us - self._from_us) // US_PER_WEEK if self._is_fresh else 0
        if week not in self._tables:
            self._tables = {week: counts.fit(self._logs, self._from_us + week * US_PER_WEEK, self._collaborative)}
        return self._tables[week]


def candidates(data: Artifact, logs: Logs, rows: Literal["live", "shown"], *, empty: bool) -> Callable[[int], I32]:
    """Request -> the ads that are its rows, ascending: all live ones, or those with an impression or an action.

    ``logs``: those of ``data``, loaded with the same ``empty``. InputError for ``shown`` without impressions.
    """
    if rows == "live":
        return logs.inventory
    shown = acted(data, logs, "impression", empty=empty)
    if shown is None:
        raise InputError("rank: no request has an impression, so no row was shown; set --rows live")

    def of(request: int) -> I32:
        ads: I32 = np.union1d(shown(request), logs.relevant(request)[0])
        return ads

    return of


def acted(data: Artifact, logs: Logs, action: str, *, empty: bool) -> Callable[[int], I32] | None:
    """Request -> the ads that have an action in it, ascending; None if no ad has. ``logs``: as in `candidates`."""
    requests = _requests(data, empty=empty)
    events = pl.read_parquet(data.path / "events.parquet", columns=["request_id", "item_id", "domain", "action"])
    pairs = (
        events.filter((pl.col("domain") == "ad") & (pl.col("action") == action))
        .join(requests.select("request_id").with_row_index("request"), on="request_id")
        .join(logs.ads.select(item_id="ad_id").with_row_index("ad"), on="item_id")
        .sort("request", "ad")
    )
    bounds = np.searchsorted(pairs["request"].to_numpy(), np.arange(requests.height + 1))
    ad_N = pairs["ad"].to_numpy().astype(np.int32)
    return (lambda request: ad_N[bounds[request] : bounds[request + 1]]) if pairs.height else None


def plain_numbers(data: Artifact) -> NDArray[np.int64]:
    """The number of each request of the log with empty ones in the log without them, where -1 is an empty one."""
    is_empty_R = _requests(data, empty=True)["is_empty"].to_numpy()
    return np.where(is_empty_R, -1, np.cumsum(~is_empty_R) - 1)


def _requests(data: Artifact, *, empty: bool) -> pl.DataFrame:
    """The requests of the tables in the order of `Logs`, with a column ``is_empty``."""
    frames = [pl.read_parquet(data.path / "requests.parquet").with_columns(is_empty=False)]
    if empty:
        frames.append(pl.read_parquet(data.path / "empty_requests.parquet").with_columns(is_empty=True))
    return pl.concat(frames).sort(REQUEST_ORDER)


def examples(
    logs: Logs,
    requests: NDArray[np.int64],
    ads_of: Callable[[int], I32],
    spec: FeatureSpec,
    known: Vocabulary,
    popularity: Popularity,
    *,
    negatives: float,
    seed: int,
    clicked_of: Callable[[int], I32] | None = None,
) -> Iterator[Example]:
    """The rows of requests, in order of time: the ads ``ads_of`` with a label, and a share ``negatives`` of the others.

    A request without a row is left out. The draw of a request depends on its number and the seed alone. ``clicked_of``
    gives the second label, a click; an action of the first label counts as a click too.
    """
    moments = of_requests(logs)
    in_time = requests[np.argsort(logs.request_at_us_R[requests], kind="stable")]
    for r in progress.bar(in_time.tolist(), total=len(in_time), label="features of requests"):
        ads = ads_of(r)
        is_label_C = np.isin(ads, logs.relevant(r)[0])
        labels = [is_label_C] if clicked_of is None else [is_label_C, is_label_C | np.isin(ads, clicked_of(r))]
        kept = is_label_C | (np.random.default_rng([seed, r]).random(len(ads)) < negatives)
        if kept.any():
            moment = moments[r]
            tables = popularity.at(moment.at_us)
            yield Example(
                request=r,
                ads=ads[kept],
                label_CH=np.stack(labels, axis=1)[kept],
                inputs=inputs(moment, ads[kept], spec, known, tables),
            )


def check_labels(rows: Sequence[Example], spec: FeatureSpec) -> None:
    """InputError if a label never happens, or always does, in these rows."""
    label_NH = np.concatenate([row.label_CH for row in rows]) if rows else np.zeros((0, len(spec.labels)), np.bool_)
    for head, name in enumerate(spec.labels):
        positives = int(label_NH[:, head].sum())
        if not 0 < positives < len(label_NH):
            cure = "check the column action of events and --positive of `leadre data`"
            if positives and spec.negatives < 1:
                cure = f"of the other ads, if there are any, a share --negatives {spec.negatives:g} are rows: raise it"
            raise InputError(
                f"rank: {positives:,} of {len(label_NH):,} training rows have the label {name!r}, so nothing can be"
                f" learnt; {cure}"
            )


def period(logs: Logs, split: int, begin: float, end: float, visits: int = 0) -> NDArray[np.int64]:
    """The requests of a split between two shares of its time, 0 to 1; of each user the last ``visits``, 0 = all.

    InputError if there is none.
    """
    requests = logs.requests_of(split)
    if not len(requests):
        raise InputError(f"rank: the log has no {SPLITS[split]} requests; run `leadre data` with other split times")
    at_us: I64 = logs.request_at_us_R[requests]
    first = int(at_us.min())
    after = int(at_us.max()) + 1
    bounds = [first + round(share * (after - first)) for share in (begin, end)]
    chosen = requests[(at_us >= bounds[0]) & (at_us < bounds[1])]
    if not len(chosen):
        raise InputError(
            f"rank: no {SPLITS[split]} request is between {begin:.0%} and {end:.0%} of their time; take a longer part"
            " (--row-share), or run `leadre data` with other split times"
        )
    return last_of_users(logs, chosen, visits)


def drawn(requests: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many of the requests, drawn by the seed, ascending; all of them for 0."""
    if not 0 < most < len(requests):
        return requests
    return np.sort(np.random.default_rng(seed).choice(requests, most, replace=False))
