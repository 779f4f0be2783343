"""The stage serve: an OpenRTB request -> a response inside a deadline, and what becomes of it."""
