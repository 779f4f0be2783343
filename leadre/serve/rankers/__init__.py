"""The ranker in a bidder: published versions, and calibrated rates of candidates from stored profiles."""
