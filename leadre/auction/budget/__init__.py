"""Budgets: the ledger that no campaign can overdraw, and the leases that workers spend from memory."""
