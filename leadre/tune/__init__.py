"""Tuning: histories + semantic IDs -> a fine-tuned language model."""
