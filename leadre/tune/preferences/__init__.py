"""Preference training: pairs by business value, DPO and SimPO."""
