"""Events of bids: encrypted tokens, the durable log, charges and caps that follow, and tables for training."""
