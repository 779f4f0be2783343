"""Generation: the requests of a split, or every user, -> ranked live ads; an engine for online requests."""
