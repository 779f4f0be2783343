"""Auction: rates and bids -> winners, prices and budgets, as pure functions of arrays, and the ledger of budgets."""
