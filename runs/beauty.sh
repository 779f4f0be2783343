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

control() { # NAME OPTION VALUE ...: the same tables, IDs and channels, another model
    mkdir -p "work/beauty-$1"
    for part in data semid channels; do ln -sfn "../beauty/$part" "work/beauty-$1/$part"; done
    leadre tune --config work/beauty.toml --run "beauty-$1" "${@:2}"
    leadre generate --config work/beauty.toml --run "beauty-$1"
}
control prior --zero-codes true --pointer false --max-steps 1 # nothing is learnt
control random --random-backbone true
leadre evaluate --config work/beauty.toml \
    --extra prior_alone=work/beauty-prior/generate,random_body=work/beauty-random/generate
