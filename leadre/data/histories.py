"""The tables as flat arrays: users' events, and requests with their live inventories and outcomes.

Shape letters: U users, A ads, O objects, E events, R requests. All positions are int32 indices into
frames sorted by ID, so that the same logs always give the same numbers. Everything variable-length is CSR: row ``r`` of
``relevant_ads`` is ``relevant_ads[relevant_offsets[r]:relevant_offsets[r + 1]]``.

One rule keeps the future out: the history of a request is the user's events strictly before its time
(``Logs.history_end``). Two visits in the same instant do not see each other. `data/moment.py` turns requests into
Moments, the form that prompts, channels and the prior read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from leadre.artifact import Artifact
from leadre.data import text
from leadre.data.inventories import Inventories
from leadre.data.tables import Tables, micros, no_bad_rows, positions
from leadre.errors import InputError
from leadre.units import US_PER_DAY

CONTENT, AD = 0, 1
TRAIN, VALID, TEST = 0, 1, 2
SPLITS = ("train", "valid", "test")
MAX_HISTORY = 1 << 14  # events; a user with less than twice as many has them all
REQUEST_ORDER = ("user_id", "at", "request_id")  # of the rows R of `Logs`
# The times of a log are instants, days without an hour (all at midnight UTC), or nothing but an order.
Clock = Literal["instants", "days", "order"]
HIDDEN = "hidden.parquet"  # of a data artifact, where objects are hidden

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Users' events in both domains, and the requests with their live inventories and outcomes.

    Events are positive actions only (in the content domain: click, view, conversion; in the ad domain: the action that
    the data stage's ``positive`` names), sorted by user, time, request, order in the log. Times are microseconds since
    1970 UTC, money is billionths of the currency.
    """

    ads: pl.DataFrame  # A rows, the ads table sorted by ad_id
    objects: pl.DataFrame  # O rows: object_id, title, category_path, brand, text, hidden; sorted by object_id
    users: pl.DataFrame  # U rows, sorted by user_id
    ad_object_A: I32
    event_offsets: I64  # [U + 1]
    at_us_E: I64
    object_E: I32
    ad_E: I32  # -1 in the content domain
    domain_E: I8  # CONTENT or AD
    value_nanos_E: I64
    request_E: I32  # -1 where the event belongs to no request
    request_user_R: I32  # requests are sorted by `REQUEST_ORDER`
    request_at_us_R: I64
    request_placement_R: I32  # index into placements
    placements: list[str]
    request_split_R: I8  # TRAIN, VALID or TEST
    relevant_offsets: I64  # [R + 1]
    relevant_ads: I32  # the ads acted on in the request, distinct, ascending
    relevant_value_nanos: I64  # their money, summed over the request
    inventories: Inventories
    clock: Clock = "instants"
    history_begin_R: I64 | None = None  # first event of each history, where not all have the user's first

    @property
    def hidden_O(self) -> Mask:
        """Mask of the objects launched when training ended (``data/hidden.py``); nothing is fitted on them."""
        result: Mask = self.objects["hidden"].to_numpy()
        return result

    def history_end(self, r: int) -> int:
        """Index of the first event of the request's user at or after its time; its history ends before it."""
        user = self.request_user_R[r]
        start = self.event_offsets[user]
        end = self.event_offsets[user + 1]
        return int(start + np.searchsorted(self.at_us_E[start:end], self.request_at_us_R[r], side="left"))

    def history_ends(self) -> I64:
        """``history_end`` of all requests at once: int64 [R]."""
        return self.ends_before(self.request_user_R, self.request_at_us_R)

    def ends_before(self, user_M: I32, at_us_M: I64) -> I64:
        """Index of the first event of each user at or after each time: int64 [M]."""
        user_E = np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(self.event_offsets))
        user = np.concatenate([user_M, user_E])
        at_us = np.concatenate([at_us_M, self.at_us_E])
        is_event = np.arange(len(user)) >= len(user_M)
        order = np.lexsort((is_event, at_us, user))  # a moment sorts before the events of its own instant
        events_before = np.cumsum(is_event[order])
        ends = np.empty(len(user_M), np.int64)
        positions = np.flatnonzero(~is_event[order])
        ends[order[positions]] = events_before[positions]
        return ends

    def history(self, r: int) -> slice:
        """The history of request ``r``, oldest first: a slice of every array named ``_E``."""
        begin_R = self.history_begin_R
        begin = self.event_offsets[self.request_user_R[r]] if begin_R is None else begin_R[r]
        return slice(int(begin), self.history_end(r))

    def inventory(self, r: int) -> I32:
        """Ad indices live in request ``r``, ascending."""
        return self.inventories.ads(r)

    def relevant(self, r: int) -> tuple[I32, I64]:
        """(ad indices acted on in request ``r``, their money in billionths)."""
        rows = slice(int(self.relevant_offsets[r]), int(self.relevant_offsets[r + 1]))
        return self.relevant_ads[rows], self.relevant_value_nanos[rows]

    def requests_of(self, split: int) -> I64:
        """Indices of the requests in TRAIN, VALID or TEST."""
        return np.flatnonzero(self.request_split_R == split)


def choose_requests(logs: Logs, *, split: str, users: int, visits: int = 0, seed: int) -> I64:
    """The requests of a split, or those of ``users`` of its users, at most ``visits`` each; 0: all. ``seed`` draws.

    The draw of users is among those with an action in the split: it is the same with and without requests that have
    none.
    """
    requests = logs.requests_of(SPLITS.index(split))
    has_action = np.diff(logs.relevant_offsets)[requests] > 0
    all_users = np.unique(logs.request_user_R[requests[has_action]])
    if 0 < users < len(all_users):
        drawn = np.random.default_rng(seed).choice(all_users, size=users, replace=False)
        requests = requests[np.isin(logs.request_user_R[requests], drawn)]
    return at_most(logs, requests, visits, seed) if visits else requests


def at_most(logs: Logs, requests: I64, visits: int, seed: int) -> I64:
    """The ``requests``, ascending; of a user with more than ``visits`` of them as many, drawn by ``seed``."""
    shuffled = np.random.default_rng(seed).permutation(requests)
    in_order = shuffled[np.argsort(logs.request_user_R[shuffled], kind="stable")]
    user_R = logs.request_user_R[in_order]
    first_R = np.searchsorted(user_R, user_R, side="left")
    return np.sort(in_order[np.arange(len(in_order)) - first_R < visits])


def last_of_users(logs: Logs, requests: I64, visits: int) -> I64:
    """The ``requests``, ascending; of a user with more than ``visits`` of them the last ones. 0: all."""
    if not visits:
        return requests
    user_R = logs.request_user_R[requests]  # ascending by user, then by time
    return requests[np.searchsorted(user_R, user_R, side="right") - np.arange(len(user_R)) <= visits]


def first_seen(logs: Logs, r: int) -> Mask:
    """Mask over ``relevant(r)``: the object is not in the history of the request."""
    objects = logs.ad_object_A[logs.relevant(r)[0]]
    return ~np.isin(objects, logs.object_E[logs.history(r)])


def load(artifact: Artifact, *, empty: bool = False) -> Logs:
    """Read a data artifact. The caller has it from ``artifact.read(folder, artifact.TABLES)``.

    ``empty``: include the requests without a positive action, which ranking needs.
    """
    names = ["ads", "contents", "users", "events", "requests", "inventories"]
    if empty:
        names += ["empty_requests", "empty_inventories"]
    frames = {name: pl.read_parquet(artifact.path / f"{name}.parquet") for name in names}
    tables = Tables(**frames, bad_rows=no_bad_rows())
    has_hidden = HIDDEN in artifact.meta["files"]
    hidden = pl.read_parquet(artifact.path / HIDDEN)["object_id"] if has_hidden else pl.Series(dtype=pl.String)
    config = artifact.meta["config"]
    order_only = bool(config.get("order_only", False))
    return of_tables(tables, str(config["positive"]), hidden=hidden, order_only=order_only, empty=empty)


def of_tables(
    tables: Tables,
    positive: str,
    *,
    hidden: pl.Series | None = None,
    order_only: bool = False,
    empty: bool = False,
) -> Logs:
    """The logs of checked tables; see `build` and `load` for the options."""
    requests = tables.requests
    inventories = tables.inventories
    if empty:
        requests = pl.concat([requests, tables.empty_requests])
        inventories = pl.concat([inventories, tables.empty_inventories])
    return build(
        ads=tables.ads,
        contents=tables.contents,
        users=tables.users,
        events=tables.events,
        requests=requests,
        inventories=inventories,
        positive=positive,
        hidden=hidden,
        order_only=order_only,
    )


def build(
    *,
    ads: pl.DataFrame,
    contents: pl.DataFrame,
    users: pl.DataFrame,
    events: pl.DataFrame,
    requests: pl.DataFrame,
    inventories: pl.DataFrame,
    positive: str,
    hidden: pl.Series | None = None,
    order_only: bool = False,
) -> Logs:
    """Checked tables -> Logs. ``positive``: the action in the ad domain that counts ("conversion" or "click").

    ``hidden``: IDs of the objects that the tables show from the end of training on (``data/hidden.py``).
    ``order_only``: the source has made up the times, to express an order.
    """
    ads = ads.sort("ad_id")
    users = users.sort("user_id")
    objects = _objects(ads, contents)
    late = pl.Series(dtype=pl.String) if hidden is None else hidden
    objects = objects.with_columns(hidden=pl.col("object_id").is_in(late.implode()))
    ad_object_A = positions(ads["object_id"], objects["object_id"])
    requests = requests.sort(REQUEST_ORDER)
    placements = sorted(requests["placement_id"].drop_nulls().unique().to_list()) or [""]
    live = Inventories.of(requests, inventories, ads["ad_id"])
    assert live.sizes_R.all(), "requests without a live ad reached the artifact"
    arrays = _events(events, positive, ads, objects, users, requests)
    arrays |= _relevant(arrays, requests)
    logs = Logs(
        ads=ads,
        objects=objects,
        users=users,
        ad_object_A=ad_object_A,
        **arrays,
        request_user_R=positions(requests["user_id"], users["user_id"]),
        request_at_us_R=micros(requests["at"]),
        request_placement_R=positions(requests["placement_id"].fill_null(placements[0]), pl.Series(placements)),
        placements=placements,
        request_split_R=positions(requests["split"], pl.Series(SPLITS)).astype(np.int8),
        inventories=live,
        clock="order" if order_only else clock_of(requests["at"]),
    )
    if np.diff(logs.event_offsets).max(initial=0) < 2 * MAX_HISTORY:
        return logs
    return dataclasses.replace(
        logs, history_begin_R=history_begins(logs.event_offsets[logs.request_user_R], logs.history_ends())
    )


def history_begins(first_M: I64, end_M: I64) -> I64:
    """The first event of histories that end before ``end_M``, of users whose first event is ``first_M``.

    A history has all events, or the last `MAX_HISTORY` to twice as many: the begin moves in steps, so that requests of
    one user that follow each other have one, and prompts with a shared prefix.
    """
    steps_M = np.maximum((end_M - first_M) // MAX_HISTORY - 1, 0)
    result: I64 = first_M + steps_M * MAX_HISTORY
    return result


def clock_of(at: pl.Series) -> Clock:
    """Whether times are instants or, if all of them are at midnight UTC, days."""
    at_us = micros(at)
    return "days" if len(at_us) and not (at_us % US_PER_DAY).any() else "instants"


def positives(events: pl.DataFrame, positive: str) -> pl.DataFrame:
    """The events that show a preference: no impressions, and of an ad's actions only ``positive``."""
    is_ad = pl.col("domain") == "ad"
    return events.filter(pl.when(is_ad).then(pl.col("action") == positive).otherwise(pl.col("action") != "impression"))


def in_time(positive_events: pl.DataFrame, requests: pl.DataFrame) -> pl.DataFrame:
    """The ad events that are outcomes of their request, with the request's ``split``.

    A conversion that arrives after the next split has begun is unknown while a model learns from this split, so it is
    history for later requests but no label.
    """
    starts = dict(requests.group_by("split").agg(pl.min("at")).iter_rows())
    joined = positive_events.filter(pl.col("domain") == "ad").join(
        requests.select("request_id", "split"), on="request_id", how="inner", maintain_order="left"
    )
    for split, following in (("train", "valid"), ("valid", "test")):
        if starts.get(following) is not None:
            joined = joined.filter((pl.col("split") != split) | (pl.col("at") < starts[following]))
    return joined


def _objects(ads: pl.DataFrame, contents: pl.DataFrame) -> pl.DataFrame:
    """Marketing objects and contents in one ID space. Of several ads of an object the first by ad_id describes it."""
    columns = ["object_id", "title", "category_path", "brand", "description"]
    from_ads = ads.select(columns).unique("object_id", keep="first", maintain_order=True)
    from_contents = contents.rename({"content_id": "object_id"}).select(columns)
    both = pl.concat([from_ads, from_contents]).unique("object_id", keep="first", maintain_order=True)
    both = both.sort("object_id")
    parts = both.select("title", "brand", "category_path", "description").iter_rows()
    texts = pl.Series("text", [text.join(*row) for row in parts], dtype=pl.String)
    titles = pl.Series("title", [text.clean(title or "") for title in both["title"]], dtype=pl.String)
    return both.select("object_id", titles, "category_path", "brand", texts)


def _events(
    events: pl.DataFrame,
    positive: str,
    ads: pl.DataFrame,
    objects: pl.DataFrame,
    users: pl.DataFrame,
    requests: pl.DataFrame,
) -> dict[str, Any]:
    rows = positives(events, positive)
    user = positions(rows["user_id"], users["user_id"])
    is_ad = (rows["domain"] == "ad").to_numpy()
    ad = positions(rows["item_id"], ads["ad_id"], missing=True)
    ad[~is_ad] = -1
    content = positions(rows["item_id"], objects["object_id"], missing=True)
    item = np.where(is_ad, positions(ads["object_id"], objects["object_id"])[ad], content).astype(np.int32)
    assert bool((item >= 0).all()) and bool((ad[is_ad] >= 0).all()), "events of unknown items reached the artifact"
    request = positions(rows["request_id"], requests["request_id"], missing=True)
    at_us = micros(rows["at"])
    order = np.lexsort((np.arange(len(rows)), request, at_us, user))
    return {
        "event_offsets": _offsets(user, len(users)),
        "at_us_E": at_us[order],
        "object_E": item[order],
        "ad_E": ad[order],
        "domain_E": np.where(is_ad, AD, CONTENT).astype(np.int8)[order],
        "value_nanos_E": rows["value_nanos"].fill_null(0).to_numpy()[order],
        "request_E": request[order],
    }


def _relevant(arrays: dict[str, Any], requests: pl.DataFrame) -> dict[str, Any]:
    """The distinct ads of each request with summed money, from the event arrays (see ``in_time``)."""
    split_R = positions(requests["split"], pl.Series(SPLITS))
    at_us_R = micros(requests["at"])
    never = np.iinfo(np.int64).max
    starts = [int(at_us_R[split_R == split].min(initial=never)) for split in (VALID, TEST)]
    horizon = np.array([*starts, never], np.int64)  # by split: labels of train end where validation begins
    request = arrays["request_E"]
    ad = arrays["ad_E"]
    counts = (request >= 0) & (ad >= 0)
    counts &= arrays["at_us_E"] < horizon[split_R[request]]
    frame = pl.DataFrame({"r": request[counts], "ad": ad[counts], "v": arrays["value_nanos_E"][counts]})
    frame = frame.group_by("r", "ad").agg(pl.sum("v")).sort("r", "ad")
    return {
        "relevant_offsets": _offsets(frame["r"].to_numpy(), len(requests)),
        "relevant_ads": frame["ad"].to_numpy().astype(np.int32),
        "relevant_value_nanos": frame["v"].to_numpy().astype(np.int64),
    }


def train_end_us(logs: Logs, now_us: int | None = None) -> int:
    """The time of the first held-out request, or ``now_us`` if that is earlier: fitting uses events strictly before it.

    InputError for a log without held-out requests, unless ``now_us`` is given.
    """
    held_out_us = logs.request_at_us_R[logs.request_split_R >= VALID]
    if now_us is not None:
        held_out_us = np.append(held_out_us, now_us)
    if not len(held_out_us):
        raise InputError("the log has no validation or test requests, so training time has no end; split it by time")
    return int(held_out_us.min())


def _offsets(groups: npt.NDArray[np.integer[Any]], count: int) -> I64:
    """CSR offsets of rows that will be sorted by ``groups`` (0 <= group < count)."""
    return np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=count))]).astype(np.int64)
