"""What comes back for a bid: signed, logged, counted once, and made into tables that training reads."""
