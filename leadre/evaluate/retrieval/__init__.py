"""Retrieval metrics of ranked lists, for all requests and for cold-start slices."""
