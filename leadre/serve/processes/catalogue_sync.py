"""The catalogue in the writer: source of budgets for the ledger, time zones for reports, ad statuses for the log."""

from __future__ import annotations

from collections.abc import Iterable

from leadre import database
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget
from leadre.serve.catalogue import database as manage_database
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.records import StatusRecord
from leadre.serve.paths import StatePaths


class CatalogueSync:
    """Loads the catalogue and passes its budgets to the ledger, which does not charge unknown campaigns."""

    def __init__(self, paths: StatePaths, ledger: Ledger) -> None:
        self._connection = database.connect(paths.manage_database, manage_database.MIGRATIONS, read_only=True)
        self._ledger = ledger
        self.catalogue = eligibility.load(self._connection)
        self._budgets: dict[str, Budget] = {}
        self._ledger_catalogue: CatalogueSnapshot | None = None  # the ledger has the budgets of this version
        self._logged_live: set[str] = set()  # ads that are live according to the log
        self._logged_catalogue: CatalogueSnapshot | None = None  # the log has the ad statuses of this version

    def zone_of(self, campaign_id: str) -> str:
        """The campaign's time zone; UTC for an unknown campaign."""
        row = self.catalogue.row_of_campaign.get(campaign_id)
        return "UTC" if row is None else self.catalogue.campaigns[row].zone

    def has_budget(self, campaign_id: str) -> bool:
        """Whether the ledger knows the campaign, so that it can charge it."""
        return campaign_id in self._budgets

    def refresh(self, now_us: int) -> None:
        """Load changes of the catalogue, and pass new and changed budgets on to the ledger."""
        self.catalogue = eligibility.refresh(self.catalogue, self._connection)
        self.set_budgets(now_us)

    def set_budgets(self, now_us: int) -> None:
        """Pass new and changed budgets of the loaded catalogue on to the ledger."""
        if self._ledger_catalogue is self.catalogue:
            return
        budgets = {
            campaign.campaign_id: Budget(
                total_nanos=campaign.total_nanos, daily_nanos=campaign.daily_nanos, zone=campaign.zone
            )
            for campaign in self.catalogue.campaigns
        }
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
        self._connection.close()
