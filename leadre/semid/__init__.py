"""Ads to semantic IDs: embed the text of each object, quantise it by levels, give every object its own path."""
