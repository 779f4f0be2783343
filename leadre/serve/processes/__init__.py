"""The processes of a bidder, and how they talk."""
