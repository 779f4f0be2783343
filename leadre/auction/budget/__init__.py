"""Budgets: the ledger that no campaign can overdraw, and the leases from which workers bid without a call to it."""
