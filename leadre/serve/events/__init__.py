"""Events of bids: signed tokens, the durable log, charges and caps that follow, and tables for training."""
