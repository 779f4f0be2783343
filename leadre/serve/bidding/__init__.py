"""One bid decision: candidates, eligibility, value, budget, cap, selection."""
