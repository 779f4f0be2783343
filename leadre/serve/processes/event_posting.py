"""Event posting: verify the token, charge the ledger, append to the log, then update counters, caps and profiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from leadre import telemetry
from leadre.errors import TokenError
from leadre.serve.events.calibration import CalibrationWatch
from leadre.serve.events.caller_ids import CallerIds
from leadre.serve.events.outcomes import CONVERSION_US, EventProcessor, EventReport
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import EventRequest, WriterRequest
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.derived_state import DerivedState
from leadre.serve.processes.user_updates import UserUpdates


class EventPosting:
    """Posts the events of a batch of requests in one transaction."""

    def __init__(
        self,
        token_keys: TokenKeys,
        caller_ids: CallerIds,
        processor: EventProcessor,
        derived: DerivedState,
        catalogue_sync: CatalogueSync,
        users: UserUpdates,
    ) -> None:
        self._token_keys = token_keys
        self._caller_ids = caller_ids
        self._processor = processor
        self._derived = derived
        self._catalogue_sync = catalogue_sync
        self._users = users
        self._calibration = CalibrationWatch()

    def post_batch(self, requests: Sequence[WriterRequest], now_us: int, certain_us: int) -> dict[int, str]:
        """Post the `EventRequest`s of a batch. Returns index of the request -> outcome, as in `EventReply`.

        ``certain_us`` is as in `EventProcessor.process`.
        """
        outcomes: dict[int, str] = {}
        reports: dict[int, EventReport] = {}
        for index, request in enumerate(requests):
            if isinstance(request, EventRequest):
                report = self._report(request)
                if report is None:
                    outcomes[index] = "refused"
                else:
                    reports[index] = report
        if reports:
            are_new = self._post(list(reports.values()), now_us, certain_us)
            for index, is_new in zip(reports, are_new, strict=True):
                outcomes[index] = "new" if is_new else "known"
        return outcomes

    def _report(self, request: EventRequest) -> EventReport | None:
        """The event with its verified token; None if the token is invalid or expired."""
        token_kind = request.token_kind or request.kind
        needs_impression = request.kind == "conv" and token_kind != "conv"
        try:
            token = self._token_keys.check(
                request.token, token_kind, request.at_us, CONVERSION_US if needs_impression else 0
            )
        except TokenError:
            return None
        return EventReport(
            kind=request.kind,
            token=token,
            at_us=request.at_us,
            price_nanos=request.price_nanos,
            value_nanos=request.value_nanos,
            min_to_win_nanos=request.min_to_win_nanos,
            loss_reason=request.loss_reason,
            event_id=self._caller_ids.hash("event", request.event_id),
            needs_impression=needs_impression,
        )

    def _post(self, reports: Sequence[EventReport], now_us: int, certain_us: int) -> list[bool]:
        """Post events to ledger and log, then update counters, caps and profiles. Returns which events are new."""
        self._derived.catch_up()
        if not all(self._catalogue_sync.has_budget(report.token.campaign_id) for report in reports):
            self._derived.follow_catalogue(now_us)  # a campaign is newer than the loaded catalogue
        effects = self._processor.process(reports, now_us, certain_us)
        charged_nanos: Counter[str] = Counter()  # by currency
        unpaid_nanos: Counter[str] = Counter()
        for report, effect in zip(reports, effects, strict=True):
            if effect.record is not None:
                self._derived.add(effect.record)
                charged_nanos[report.token.currency] += effect.charged_nanos
                unpaid_nanos[report.token.currency] += effect.record.owed_nanos - effect.charged_nanos
            if effect.is_new:
                self._calibration.add(report.kind, report.token)
            if effect.cap:
                self._users.add_cap_update(effect.cap, report.token)
            if effect.is_new and report.kind in ("click", "conv"):
                self._users.add_to_profile(report, self._catalogue_sync.catalogue, now_us)
        for currency in charged_nanos:
            telemetry.CHARGED_NANOS.labels(currency).inc(charged_nanos[currency])
            telemetry.WRITTEN_OFF_NANOS.labels(currency).inc(unpaid_nanos[currency])
        self._derived.set_current()
        self._users.flush_cap_updates()
        return [effect.is_new for effect in effects]
