"""The catalogue in the writer: source of budgets for the ledger, time zones for reports, ad statuses for the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget
from leadre.clock import Clock
from leadre.serve.catalogue import database as manage_database
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.outcomes import CONVERSION_US
from leadre.serve.events.records import StatusRecord
from leadre.serve.events.tokens import GRACE_US
from leadre.serve.paths import StatePaths
from leadre.serve.processes.database_reader import DatabaseReader
from leadre.serve.processes.disk_reports import DiskReports
from leadre.types import BidType, Campaign
from leadre.units import US_PER_S

READ_S = 1.0  # that bookings wait for a read of the catalogue
# From the end of `exp_s` to the end of a reservation.
PENDING_US: Mapping[BidType, int] = {"cpm": 0, "cpc": GRACE_US, "cpa": CONVERSION_US}


def budget_of(campaign: Campaign, exp_s: int) -> Budget:
    """The ledger's budget of a campaign.

    A bid for impressions reserves its price for as long as it may be shown (``exp_s``). One for clicks or conversions
    reserves their expected value, a small part of their price, until most have come.
    """
    return Budget(
        total_nanos=campaign.total_nanos,
        daily_nanos=campaign.daily_nanos,
        zone=campaign.zone,
        pending_s=exp_s + PENDING_US[campaign.bid_type] // US_PER_S,
        event_nanos=0 if campaign.bid_type == "cpm" else campaign.bid_nanos,
    )


class CatalogueSync:
    """Loads the catalogue and passes its budgets to the ledger, which does not charge unknown campaigns.

    ``exp_s``: `Settings.exp_s`. Leases reserve as long after their end, or longer (`budget_of`).
    """

    def __init__(self, paths: StatePaths, ledger: Ledger, exp_s: int, clock: Clock) -> None:
        self._reader = DatabaseReader(paths.manage_database, manage_database.MIGRATIONS)
        self._reading: Future[CatalogueSnapshot] | None = None  # a read that takes longer than `READ_S`
        self._reports = DiskReports("the writer's catalogue", clock)
        self._ledger = ledger
        self._exp_s = exp_s
        self.catalogue = self._reader.submit(eligibility.load).result()
        self._budgets: dict[str, Budget] = {}
        self._ledger_catalogue: CatalogueSnapshot | None = None  # the ledger has the budgets of this version
        self._logged_live: set[str] = set()  # ads that are live according to the log
        self._logged_catalogue: CatalogueSnapshot | None = None  # the log has the ad statuses of this version

    def zone_of(self, campaign_id: str) -> str:
        """The campaign's time zone; UTC for an unknown campaign."""
        row = self.catalogue.row_of_campaign.get(campaign_id)
        return "UTC" if row is None else self.catalogue.campaigns[row].zone

    def zones(self) -> dict[str, str]:
        """The time zones of all campaigns."""
        return {campaign.campaign_id: campaign.zone for campaign in self.catalogue.campaigns}

    def has_budget(self, campaign_id: str) -> bool:
        """Whether the ledger knows the campaign, so that it can charge it."""
        return campaign_id in self._budgets

    def refresh(self, now_us: int) -> None:
        """Load changes of the catalogue, and pass new and changed budgets on to the ledger.

        The catalogue stays as it is while another program has the database locked; that is reported. Bookings wait for
        the first read that takes longer than `READ_S`, and for no other.
        """
        is_late = self._reading is not None
        known = self.catalogue
        reading = self._reading or self._reader.submit(lambda connection: eligibility.refresh(known, connection))
        self._reading = None
        try:
            self.catalogue = reading.result(0 if is_late else READ_S)
            self._reports.accepted()
        except TimeoutError:
            self._reading = reading
            self._reports.refused(f"manage.db: no reply within {READ_S:.0f} s")
        except sqlite3.OperationalError as error:
            self._reports.refused(f"manage.db: {error}")
        self.set_budgets(now_us)

    def set_budgets(self, now_us: int) -> None:
        """Pass new and changed budgets of the loaded catalogue on to the ledger."""
        if self._ledger_catalogue is self.catalogue:
            return
        budgets = {campaign.campaign_id: budget_of(campaign, self._exp_s) for campaign in self.catalogue.campaigns}
        changed = {name: budget for name, budget in budgets.items() if self._budgets.get(name) != budget}
        if changed:
            self._ledger.set_budgets(changed, now_us)
        self._budgets = budgets
        self._ledger_catalogue = self.catalogue

    def add(self, record: StatusRecord) -> None:
        """Apply a status record of the log to the set of logged live ads."""
        if record.is_live:
            self._logged_live.add(record.ad_id)
        else:
            self._logged_live.discard(record.ad_id)

    def logged_live(self) -> list[str]:
        """Ads that are live according to the log, sorted, for `restore`."""
        return sorted(self._logged_live)

    def restore(self, live: Iterable[str]) -> None:
        """Replace the set of logged live ads."""
        self._logged_live = set(live)

    def status_changes(self, now_us: int) -> list[StatusRecord]:
        """A record for every ad that is live in the catalogue but not in the log, or the reverse.

        The caller appends them to the log and calls `set_logged`.
        """
        if self._logged_catalogue is self.catalogue:
            return []
        catalogue = self.catalogue
        live = {ad.ad_id for ad, is_live in zip(catalogue.ads, catalogue.live_A.tolist(), strict=True) if is_live}
        started = sorted(live - self._logged_live)
        ended = sorted(self._logged_live - live)
        changes = [StatusRecord(at_us=now_us, ad_id=ad_id, is_live=True) for ad_id in started]
        return changes + [StatusRecord(at_us=now_us, ad_id=ad_id, is_live=False) for ad_id in ended]

    def set_logged(self) -> None:
        """Note that the log has the status of every ad of the loaded catalogue."""
        self._logged_catalogue = self.catalogue

    def close(self) -> None:
        self._reader.close()
