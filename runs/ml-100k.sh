#!/usr/bin/env bash
# LEADRE, its controls and its rivals on MovieLens-100k: `bash runs/ml-100k.sh FOLDER`, with the folder of the log. Half an
# hour on 2 cores; a killed run resumes. Then open work/ml-100k/evaluate/report.html.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
folder=$(cd "$OLDPWD" && cd "${1:?the folder of the log}" && pwd)

mkdir -p work
sed "s|^path = \"[^\"]*\"|path = \"$folder\"|" configs/ml-100k.toml > work/ml-100k.toml
for stage in data semid tune generate; do
    leadre "$stage" --config work/ml-100k.toml
done

control() { # NAME OPTION VALUE ...: the same tables, IDs and channels, another model
    mkdir -p "work/ml-100k-$1"
    for part in data semid channels; do ln -sfn "../ml-100k/$part" "work/ml-100k-$1/$part"; done
    leadre tune --config work/ml-100k.toml --run "ml-100k-$1" "${@:2}"
    leadre generate --config work/ml-100k.toml --run "ml-100k-$1"
}
control prior --zero-codes true --pointer false --max-steps 1 # nothing is learnt
control random --random-backbone true
leadre evaluate --config work/ml-100k.toml \
    --channels popularity,item_knn,als,tifu_knn,up_cf,sasrec,counts_network \
    --extra prior_alone=work/ml-100k-prior/generate,random_body=work/ml-100k-random/generate
