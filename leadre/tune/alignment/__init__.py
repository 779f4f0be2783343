"""Alignment tasks: sentences that tie semantic IDs to what they mean."""
