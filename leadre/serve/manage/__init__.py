"""The management API: who may change what, and the rights of users."""
