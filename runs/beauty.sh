#!/usr/bin/env bash
# What long histories, words and alignment tasks are worth on Amazon 2014 Beauty: `bash runs/beauty.sh FOLDER`, the folder
# with the reviews and the items (which forms are read: leadre/data/sources/amazon.py). Then open
# work/beauty/evaluate-ablation/report.html.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
folder=$(cd "$OLDPWD" && cd "${1:?the folder of the data}" && pwd)

mkdir -p work
sed "s|^path = \"[^\"]*\"|path = \"$folder\"|" configs/beauty.toml > work/beauty.toml
leadre evaluate ablation --config work/beauty.toml
