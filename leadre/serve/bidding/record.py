"""A request and its answer <-> what the log keeps of them: enough to answer it again, of its user what is allowed.

Of a request, what decides is kept: not who asked (the record itself says it, where it may), nor page, address and
language. Fields at their default are left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from leadre.serve.bidding.context import BidDecision
from leadre.serve.bidding.select import CONSIDERED
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.records import RequestRecord
from leadre.serve.settings import Settings
from leadre.types import Candidate, Impression, Request, Signals

NOT_KEPT = ("request_id", "user_id", "tmax_ms", "page", "publisher_id", "language", "ip", "cattax")
OF_THE_USER = ("segments",)  # kept where the user is


def _defaults(kind: type) -> dict[str, Any]:
    """Field -> default of a dataclass; a field without one has what equals nothing."""
    return {
        field.name: field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        for field in dataclasses.fields(kind)
    }


_REQUEST = {name: value for name, value in _defaults(Request).items() if name not in (*NOT_KEPT, "imps", "signals")}
_IMPRESSION, _SIGNALS = _defaults(Impression), _defaults(Signals)


def record(
    request: Request, answer: BidDecision, now_us: int, book: CatalogueSnapshot, options: str, *, is_degraded: bool
) -> RequestRecord:
    """What the log keeps of a request; of its user only what measuring or profiling was allowed.

    Candidates are the first of the list and whatever else was considered in a place. ``options`` as of `digest`;
    ``is_degraded``: the store was down.
    """
    found, is_kept = answer.candidates, answer.permitted.measure or answer.permitted.add_to_profile
    user_id = answer.user_id if is_kept else ""
    considered = set().union(*(place.considered for place in answer.places))
    kept = [] if found is None else list(enumerate(found.rows_K.tolist()))
    kept = [(k, row) for k, row in kept if k < CONSIDERED or row in considered]
    return RequestRecord(
        request_id=answer.request_id,
        caller_request_id=request.request_id,
        at_us=now_us,
        user_id=user_id,
        is_known=answer.user_id != "",
        request=_asked(request, is_kept=user_id != ""),
        placements={imp.imp_id: imp.placement_id for imp in request.imps if imp.placement_id},
        candidates=tuple(
            Candidate(ad_id=book.ads[row].ad_id, source=found.source, log_p=float(found.log_p_K[k])) for k, row in kept
        )
        if found is not None
        else (),
        verdicts={place.imp.imp_id: tuple(place.verdicts.get(row, "") for _, row in kept) for place in answer.places},
        bids=tuple(each.bid for each in answer.rendered),
        reason=answer.reason.name.lower() if answer.reason else "",
        versions={**answer.versions, "options": options},
        is_degraded=is_degraded,
        is_cut=found is not None and found.is_cut,
        is_test=request.is_test,
    )


def request_of(answered: RequestRecord) -> Request:
    """The request again, as far as it decided anything. InputError where the record has none: an older release's."""
    ids = {"request_id": answered.caller_request_id, "user_id": answered.user_id}
    return msgspec.convert(answered.request | ids, Request, strict=False)


def digest(settings: Settings) -> str:
    """A short name of the options that decide answers, so that a replay knows whether it has the same."""
    decide = (settings.seat, settings.vendor_id, settings.gdpr_when_absent, settings.exploration)
    return hashlib.blake2b(repr(decide).encode(), digest_size=4).hexdigest()


def _asked(request: Request, *, is_kept: bool) -> dict[str, Any]:
    asked = _changed(request, _REQUEST)
    if not is_kept:
        for name in OF_THE_USER:
            asked.pop(name, None)
    if signals := _changed(request.signals, _SIGNALS):
        asked["signals"] = signals
    asked["imps"] = [_changed(imp, _IMPRESSION) for imp in request.imps]
    return asked


def _changed(item: object, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, default in defaults.items() if (value := getattr(item, name)) != default}
