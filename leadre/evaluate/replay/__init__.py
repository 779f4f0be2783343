"""Replay: the logged requests of a bidder, answered again offline."""
