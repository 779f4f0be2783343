"""Campaigns and ads: kept, and as flat arrays that say what may be shown and what it is worth."""
