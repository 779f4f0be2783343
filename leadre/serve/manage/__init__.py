"""The management API and the status page: campaigns, keys, users' rights."""
