"""The ablation: one run a variant, all on the same requests."""
