"""A request and its decision <-> the record in the event log, from which a replay decides the request again.

The record keeps the fields of a request that decide. It leaves out page, address and language, and keeps the user
where consent permits. Fields at their default are left out.

Letters: K candidates, L those that are logged.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection
from itertools import repeat
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from leadre.serve.bidding.context import BidDecision, Candidates
from leadre.serve.bidding.select import MAX_CONSIDERED, verdicts_of
from leadre.serve.events.records import RankedCandidates, RequestRecord
from leadre.serve.settings import Settings
from leadre.types import Candidate, Impression, Request, Signals

OMITTED = (
    *("request_id", "user_id", "other_user_ids", "tmax_ms", "page", "publisher_id"),
    *("language", "ip", "left_out", "bills_signed_price"),
)
USER_FIELDS = ("segments",)  # kept if the user is


class _Fields:
    """Fields of a dataclass with their defaults; that of a required one, `dataclasses.MISSING`, equals no value."""

    def __init__(self, kind: type, without: Collection[str] = ()) -> None:
        fields = [field for field in dataclasses.fields(kind) if field.name not in without]
        self._names = [field.name for field in fields]
        self._values = attrgetter(*self._names)
        self._defaults = tuple(
            field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            for field in fields
        )

    def changed(self, item: object) -> dict[str, Any]:
        """The fields of an item that are not at their default."""
        values = self._values(item)
        if values == self._defaults:
            return {}
        rows = zip(self._names, values, self._defaults, strict=True)
        return {name: value for name, value, default in rows if value != default}


_REQUEST = _Fields(Request, (*OMITTED, "imps", "signals"))
_IMPRESSION = _Fields(Impression)
_SIGNALS = _Fields(Signals)


def record(
    request: Request,
    decision: BidDecision,
    now_us: int,
    options: str,
    *,
    is_degraded: bool,
    caller: str = "",
) -> RequestRecord:
    """The log record of a request. It names the user only if measuring or profiling is permitted.

    ``options``: the result of `digest`. ``is_degraded``: the store was down. ``caller``: name of the exchange.
    """
    candidates = decision.candidates
    is_kept = decision.permissions.measure or decision.permissions.add_to_profile
    user_id = decision.user_id if is_kept else ""
    position_L = _logged_positions(decision)
    return RequestRecord(
        request_id=decision.request_id,
        caller_request_id=request.request_id,
        at_us=now_us,
        user_id=user_id,
        is_known=decision.user_id != "",
        request=_request_fields(request, has_user=user_id != ""),
        placements={imp.imp_id: imp.placement_id for imp in request.imps if imp.placement_id},
        candidates=_logged_candidates(candidates, position_L) if candidates is not None else (),
        verdicts={state.imp.imp_id: verdicts_of(state.verdict_K[position_L]) for state in decision.imps},
        bids=tuple(rendered.bid for rendered in decision.rendered),
        reason=decision.reason.name.lower() if decision.reason else "",
        versions={**decision.versions, "options": options},
        is_degraded=is_degraded,
        is_cut=candidates is not None and candidates.is_cut,
        is_test=request.is_test,
        scores=() if decision.rates is None else _numbers(decision.rates.p_K[position_L]),
        ranked=_ranked(decision, position_L),
        paced=decision.paced,
        caller=caller if request.is_first_price else "",
        squashing=decision.squashing,
    )


def request_of(logged: RequestRecord) -> Request:
    """The request of a record, without the fields of `OMITTED`. InputError for a record of an older release."""
    ids = {"request_id": logged.caller_request_id, "user_id": logged.user_id}
    return msgspec.convert(logged.request | ids, Request, strict=False)


def digest(settings: Settings, *, has_old_rules: bool = False) -> str:
    """A short hash of the options that decide bids: a replay with other options compares nothing.

    ``has_old_rules``: the digest of a release with the rules of `Bidder.has_old_rules`.
    """
    deciding: tuple[object, ...] = (
        settings.seat,
        settings.vendor_id,
        settings.gdpr_when_absent,
        settings.gdpr_by_country,
        settings.exploration,
        settings.pass_unknown_category,
        settings.pass_unknown_language,
    )
    if settings.mechanism != "first_price":  # the digests of logs before the option stay
        deciding += (settings.mechanism, settings.slot_effects)
    if settings.squashing != 1.0:
        deciding += ("squashing", settings.squashing)
    if not has_old_rules:
        deciding += ("tie_keys", "rivals")
    return hashlib.blake2b(repr(deciding).encode(), digest_size=4).hexdigest()


def _logged_positions(decision: BidDecision) -> NDArray[np.int64]:
    """[L] candidates to log: the first `MAX_CONSIDERED` of the source, and all that an imp considered."""
    if decision.candidates is None:
        return np.zeros(0, np.int64)
    first = range(min(MAX_CONSIDERED, len(decision.candidates.rows_K)))
    return np.array(sorted(set(first).union(*(state.considered for state in decision.imps))), np.int64)


def _logged_candidates(candidates: Candidates, position_L: NDArray[np.int64]) -> tuple[Candidate, ...]:
    positions = position_L.tolist()
    ad_ids = map(candidates.ad_ids.__getitem__, positions)
    sources = map(candidates.source_of, positions) if candidates.api_ads else repeat(candidates.source)
    return tuple(map(Candidate, ad_ids, sources, candidates.log_p_K[position_L].tolist()))


def _ranked(decision: BidDecision, position_L: NDArray[np.int64]) -> RankedCandidates | None:
    rates = decision.rates
    if rates is None or decision.values is None:
        return None
    return RankedCandidates(
        event=rates.event,
        is_price=rates.is_price,
        log_odds=_numbers(rates.log_odds_K[position_L]),
        is_new=tuple(rates.is_new_K[position_L].tolist()),
        log_fit=tuple(decision.values.log_fit_K[position_L].tolist()),
    )


def _numbers(value_L: NDArray[np.float64]) -> tuple[float | None, ...]:
    """The numbers, and None in place of NaN."""
    return tuple(None if value != value else value for value in value_L.tolist())


def _request_fields(request: Request, *, has_user: bool) -> dict[str, Any]:
    fields = _REQUEST.changed(request)
    if not has_user:
        for name in USER_FIELDS:
            fields.pop(name, None)
    if signals := _SIGNALS.changed(request.signals):
        fields["signals"] = signals
    fields["imps"] = [_IMPRESSION.changed(imp) for imp in request.imps]
    return fields
