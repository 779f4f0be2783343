#!/usr/bin/env bash
# Control runs: do words, pretrained weights and the meaning of the IDs matter? The demo without its alignment tasks, and
# three controls that each lack one part more, on the demo's visits: work/controls/evaluate/report.html. Run it after
# runs/demo.sh; each control trains for seven minutes or more.
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
control shuffled_ids --shuffle-ids true    # the same IDs, permuted over the ads
control ids_only --words false             # prompts of IDs alone
controls=$(IFS=,; echo "${rows[*]}")

control controls # the reference of the three
ln -sfn ../demo/channels work/controls/channels
leadre evaluate --config configs/demo.toml --run controls --extra "$controls"
