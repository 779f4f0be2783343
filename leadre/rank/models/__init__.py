"""Rankers: one paper, one file, one contract (`shared.py`), which tests/rank/contract.py checks for each of them."""
