"""Lists ahead of time: one a user, into the store that serving reads."""
