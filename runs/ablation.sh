#!/usr/bin/env bash
# The ablation: the gain of each part of the model, and of each rule and safeguard of preference training. The rows are in
# leadre/evaluate/ablation/variants.py; each row is trained and evaluated in its own run, work/ablation-<row>-<seed>. It takes
# hours on a laptop and resumes after a kill. Then open work/ablation/evaluate-ablation/report.html.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

leadre evaluate ablation --config configs/ablation.toml
