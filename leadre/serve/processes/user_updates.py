"""Updates of the store that follow from events: frequency caps are posted or voided, and profiles grow."""

from __future__ import annotations

import msgspec

from leadre.errors import StoreDown
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.outcomes import CapAction, EventReport
from leadre.serve.events.tokens import Token
from leadre.store.contract import Cap, Profile, ProfileEvent, Store


class UserUpdates:
    """The writer's updates of the store. Cap updates wait while the store is down; a profile misses the event then."""

    def __init__(self, store: Store, erased: ErasedUsers) -> None:
        self.store = store
        self._erased = erased
        self._cap_updates: list[tuple[CapAction, Token]] = []  # oldest first

    def add_cap_update(self, action: CapAction, token: Token) -> None:
        """Queue an update of the token's reservation under a frequency cap."""
        self._cap_updates.append((action, token))

    def flush_cap_updates(self) -> None:
        """Send the queued updates; those that the store does not take stay in the queue."""
        try:
            while self._cap_updates:
                action, token = self._cap_updates[0]
                if action == "void":
                    self.store.void(token.cap_id)
                elif not token.user_id or token.user_id in self._erased:
                    self.store.post(token.cap_id)
                else:
                    self.store.post(token.cap_id, token.user_id, Cap(token.campaign_id, token.cap_day, 0))
                self._cap_updates.pop(0)
        except StoreDown:
            pass

    def add_to_profile(self, report: EventReport, catalogue: CatalogueSnapshot, now_us: int) -> None:
        """Add an event to its user's profile, unless consent, a test, an erasure or an unknown ad forbids it."""
        token = report.token
        row = catalogue.row_of_ad.get(token.ad_id)
        if row is None or token.is_test or not token.user_id or not token.may_profile or token.user_id in self._erased:
            return
        event = ProfileEvent(catalogue.ads[row].object_id, report.at_us, "ad", report.value_nanos)
        try:
            profile = self.store.read_profile(token.user_id) or Profile(token.user_id)
            updated = msgspec.structs.replace(profile, recent=(*profile.recent, event), updated_at_us=now_us)
            self.store.write_profiles(updated.bounded())
        except StoreDown:
            pass
