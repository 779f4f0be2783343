#!/usr/bin/env bash
# LEADRE and its rivals on Amazon 2014 Beauty: `bash runs/beauty.sh FOLDER`, with the folder of the reviews and the items
# (leadre/data/sources/amazon.py lists the accepted forms). A killed run resumes. Then open work/beauty/evaluate/report.html;
# work/beauty/channels.json has the channels on the test item of every user, three seeds each.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
folder=$(cd "$OLDPWD" && cd "${1:?the folder of the data}" && pwd)

mkdir -p work
sed "s|^path = \"[^\"]*\"|path = \"$folder\"|" configs/beauty.toml > work/beauty.toml
leadre data --config work/beauty.toml
python bench/channels.py --run work/beauty --split test --out work/beauty/channels.json
leadre semid --config work/beauty.toml
leadre tune --config work/beauty.toml
leadre generate --config work/beauty.toml
leadre evaluate --config work/beauty.toml
