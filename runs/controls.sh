#!/usr/bin/env bash
# Do the words, the pretrained weights and the meaning of the IDs matter? The demo without its alignment tasks, and three
# controls, each the same with one thing taken away, on the demo's visits: work/controls/evaluate/report.html. Run after
# runs/demo.sh; each trains for seven minutes or more.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

rows=()
control() { # NAME FLAGS...: tune and generate on the demo's tables and IDs
    local name=$1
    shift
    mkdir -p "work/$name"
    ln -sfn ../demo/data "work/$name/data"
    ln -sfn ../demo/semid "work/$name/semid"
    leadre tune --config configs/demo.toml --run "$name" --aux-share 0 --aux-first 0 "$@"
    leadre generate --config configs/demo.toml --run "$name"
    rows+=("$name=work/$name/generate")
}
control random_body --random-backbone true # the same layers from random weights
control shuffled_ids --shuffle-ids true    # the same IDs, dealt out to other ads
control ids_only --words false             # prompts of IDs alone
controls=$(IFS=,; echo "${rows[*]}")

control controls # what they are compared with
ln -sfn ../demo/channels work/controls/channels
leadre evaluate --config configs/demo.toml --run controls --extra "$controls"
