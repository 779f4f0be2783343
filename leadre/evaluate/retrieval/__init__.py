"""Measures of ranked lists, over the slices of a split."""
