"""Auction: scores -> winner, price, budget. So far the budget: a ledger that no campaign can overdraw."""
