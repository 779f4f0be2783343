"""The stage serve: an OpenRTB request -> a response inside a deadline."""
