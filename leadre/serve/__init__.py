"""The bidder: an OpenRTB request -> a response inside a deadline, and the events that follow."""
