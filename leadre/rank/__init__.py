"""Candidate ads -> calibrated probabilities of a click or a conversion."""
