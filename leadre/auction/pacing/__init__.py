"""Pacing: how much of a value is bid, and in which auctions, so that a budget is spent as planned over its day."""
