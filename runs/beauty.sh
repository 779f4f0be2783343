#!/usr/bin/env bash
# The gain of words and alignment tasks on Amazon 2014 Beauty: `bash runs/beauty.sh FOLDER`, with the folder of the reviews
# and the items (leadre/data/sources/amazon.py lists the accepted forms). Then open
# work/beauty/evaluate-ablation/report.html.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
folder=$(cd "$OLDPWD" && cd "${1:?the folder of the data}" && pwd)

mkdir -p work
sed "s|^path = \"[^\"]*\"|path = \"$folder\"|" configs/beauty.toml > work/beauty.toml
leadre evaluate ablation --config work/beauty.toml
