"""Simulation: days of bid requests through the serving code, in one process, faster than the clock."""
