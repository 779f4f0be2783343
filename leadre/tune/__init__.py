"""Histories and semantic IDs in, a fine-tuned language model out."""
