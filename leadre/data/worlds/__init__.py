"""Planted laws, one a file, each with the log-odds of its labels, so that a score is a share of the possible."""
