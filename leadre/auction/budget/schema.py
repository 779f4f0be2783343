"""Schema of ``ledger.db``. Two CHECK constraints keep ``charged + reserved <= cap`` for each campaign and each day.

Columns keep the names of the first release: ``held_nanos`` is the reserved amount, ``hold_us`` the time for which a
lease's reservations outlive it, ``returns_at_us`` the time at which `Ledger.expire` ends them, ``entries`` the events
already posted or voided, ``log`` the number of the last record of the event log that the sums include.
``budget_nanos`` is the budget of the account, ``cap_nanos`` the cap in force, which is above it while reservations
outlive a cut, and ``event_nanos`` that of `Budget`.
"""

from __future__ import annotations

NO_CAP = 1 << 62  # nanos; the stored cap of a budget without one, so that two of them still fit into an int64

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE budgets (
        campaign_id TEXT PRIMARY KEY, zone TEXT NOT NULL, hold_us INTEGER NOT NULL, daily_nanos INTEGER NOT NULL,
        cap_nanos INTEGER NOT NULL, charged_nanos INTEGER NOT NULL DEFAULT 0, held_nanos INTEGER NOT NULL DEFAULT 0,
        written_off_nanos INTEGER NOT NULL DEFAULT 0,
        CHECK (charged_nanos >= 0 AND held_nanos >= 0 AND charged_nanos + held_nanos <= cap_nanos)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE days (
        campaign_id TEXT NOT NULL REFERENCES budgets, day TEXT NOT NULL,
        cap_nanos INTEGER NOT NULL, charged_nanos INTEGER NOT NULL DEFAULT 0, held_nanos INTEGER NOT NULL DEFAULT 0,
        written_off_nanos INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (campaign_id, day),
        CHECK (charged_nanos >= 0 AND held_nanos >= 0 AND charged_nanos + held_nanos <= cap_nanos)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leases (
        lease_id INTEGER PRIMARY KEY AUTOINCREMENT, worker TEXT NOT NULL, campaign_id TEXT NOT NULL, day TEXT NOT NULL,
        granted_nanos INTEGER NOT NULL, held_nanos INTEGER NOT NULL, returns_at_us INTEGER NOT NULL,
        CHECK (held_nanos BETWEEN 0 AND granted_nanos),
        FOREIGN KEY (campaign_id, day) REFERENCES days
    ) STRICT;
    CREATE INDEX open_leases ON leases (campaign_id, day) WHERE held_nanos > 0;
    CREATE INDEX leases_by_return ON leases (returns_at_us);
    CREATE TABLE entries (
        event_id TEXT PRIMARY KEY, campaign_id TEXT NOT NULL, day TEXT NOT NULL, known_until_us INTEGER NOT NULL,
        charged_nanos INTEGER NOT NULL, written_off_nanos INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX entries_by_time ON entries (known_until_us);
    CREATE TABLE log (number INTEGER NOT NULL) STRICT;
    INSERT INTO log VALUES (0)
    """,
    """
    ALTER TABLE budgets ADD COLUMN event_nanos INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE budgets ADD COLUMN budget_nanos INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE days ADD COLUMN budget_nanos INTEGER NOT NULL DEFAULT 0;
    UPDATE budgets SET budget_nanos = cap_nanos;
    UPDATE days SET budget_nanos = cap_nanos
    """,
)
