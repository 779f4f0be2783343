"""Stage 1: logs -> clean tables, histories, requests."""
