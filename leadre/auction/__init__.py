"""Scores -> winner, price, budget. So far: the ledger that no budget can be overdrawn in."""
