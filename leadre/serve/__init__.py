"""Serving: an OpenRTB bid request in, a response inside its deadline out, and what becomes of it."""
