#!/usr/bin/env bash
# What is each part of the model worth, and each rule and safeguard of training by value? The rows are those of
# leadre/evaluate/ablation/variants.py; each is trained and asked in a run of its own, work/ablation-<row>-<seed>. Hours on a
# laptop; start it again after a kill and it carries on. Then open work/ablation/evaluate-ablation/report.html.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

leadre evaluate ablation --config configs/ablation.toml
