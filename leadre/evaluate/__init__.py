"""Logs -> numbers with intervals, and a report."""
