"""Data: logs -> clean tables, histories, requests with live inventories."""
