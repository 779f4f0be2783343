"""A request and its decision <-> the record in the event log, from which a replay decides the request again.

The record keeps the fields of a request that decide. It leaves out page, address and language, and keeps the user
where consent permits. Fields at their default are left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from leadre.serve.bidding.context import BidDecision, Candidates
from leadre.serve.bidding.select import MAX_CONSIDERED, verdicts_of
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.records import RequestRecord
from leadre.serve.settings import Settings
from leadre.types import Candidate, Impression, Request, Signals

OMITTED = ("request_id", "user_id", "tmax_ms", "page", "publisher_id", "language", "ip", "cattax", "left_out")
USER_FIELDS = ("segments",)  # kept if the user is


def _defaults(kind: type) -> dict[str, Any]:
    """Field -> default of a dataclass; a required field has `dataclasses.MISSING`, which equals no value."""
    return {
        field.name: field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        for field in dataclasses.fields(kind)
    }


_REQUEST = {name: value for name, value in _defaults(Request).items() if name not in (*OMITTED, "imps", "signals")}
_IMPRESSION = _defaults(Impression)
_SIGNALS = _defaults(Signals)


def record(
    request: Request,
    decision: BidDecision,
    now_us: int,
    catalogue: CatalogueSnapshot,
    options: str,
    *,
    is_degraded: bool,
) -> RequestRecord:
    """The log record of a request. It names the user only if measuring or profiling is permitted.

    ``options``: the result of `digest`. ``is_degraded``: the store was down.
    """
    candidates = decision.candidates
    is_kept = decision.permissions.measure or decision.permissions.add_to_profile
    user_id = decision.user_id if is_kept else ""
    positions = _logged_positions(decision)
    return RequestRecord(
        request_id=decision.request_id,
        caller_request_id=request.request_id,
        at_us=now_us,
        user_id=user_id,
        is_known=decision.user_id != "",
        request=_request_fields(request, has_user=user_id != ""),
        placements={imp.imp_id: imp.placement_id for imp in request.imps if imp.placement_id},
        candidates=_logged_candidates(candidates, positions, catalogue) if candidates is not None else (),
        verdicts={state.imp.imp_id: verdicts_of(state.verdict_K[positions]) for state in decision.imps},
        bids=tuple(rendered.bid for rendered in decision.rendered),
        reason=decision.reason.name.lower() if decision.reason else "",
        versions={**decision.versions, "options": options},
        is_degraded=is_degraded,
        is_cut=candidates is not None and candidates.is_cut,
        is_test=request.is_test,
    )


def request_of(logged: RequestRecord) -> Request:
    """The request of a record, without the fields of `OMITTED`. InputError for a record of an older release."""
    ids = {"request_id": logged.caller_request_id, "user_id": logged.user_id}
    return msgspec.convert(logged.request | ids, Request, strict=False)


def digest(settings: Settings) -> str:
    """A short hash of the options that decide bids: a replay with other options compares nothing."""
    deciding = (settings.seat, settings.vendor_id, settings.gdpr_when_absent, settings.exploration)
    return hashlib.blake2b(repr(deciding).encode(), digest_size=4).hexdigest()


def _logged_positions(decision: BidDecision) -> list[int]:
    """Candidates to log: the first `MAX_CONSIDERED` of the source, and all that an imp considered."""
    if decision.candidates is None:
        return []
    first = range(min(MAX_CONSIDERED, len(decision.candidates.rows_K)))
    return sorted(set(first).union(*(state.considered for state in decision.imps)))


def _logged_candidates(
    candidates: Candidates, positions: list[int], catalogue: CatalogueSnapshot
) -> tuple[Candidate, ...]:
    rows = candidates.rows_K[positions].tolist()
    log_p = candidates.log_p_K[positions].tolist()
    return tuple(
        Candidate(ad_id=catalogue.ads[row].ad_id, source=candidates.source, log_p=score)
        for row, score in zip(rows, log_p, strict=True)
    )


def _request_fields(request: Request, *, has_user: bool) -> dict[str, Any]:
    fields = _changed(request, _REQUEST)
    if not has_user:
        for name in USER_FIELDS:
            fields.pop(name, None)
    if signals := _changed(request.signals, _SIGNALS):
        fields["signals"] = signals
    fields["imps"] = [_changed(imp, _IMPRESSION) for imp in request.imps]
    return fields


def _changed(item: object, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, default in defaults.items() if (value := getattr(item, name)) != default}
