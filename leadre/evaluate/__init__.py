"""Offline evaluation: metrics with intervals, comparisons and reports."""
