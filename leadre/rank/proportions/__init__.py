"""Learning from label proportions: rows whose labels are known as sums of bags alone."""
