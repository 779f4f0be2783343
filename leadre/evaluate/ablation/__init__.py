"""Ablation: one training run per variant, all evaluated on the same requests."""
