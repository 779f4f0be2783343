"""Campaigns and ads: the store that keeps them, and the arrays that serving filters."""
