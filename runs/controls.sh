#!/usr/bin/env bash
# Do the words, the pretrained weights and the meaning of the IDs matter? Three controls, each the demo with one thing
# taken away, ranked on the demo's visits beside it: work/controls/evaluate/report.html. Run after runs/demo.sh; each
# control trains as long as the demo does.
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
    leadre tune --config configs/demo.toml --run "$name" "$@"
    leadre generate --config configs/demo.toml --run "$name"
    rows+=("$name=work/$name/generate")
}
control random_body --random-backbone true # the same layers from random weights
control shuffled_ids --shuffle-ids true    # the same IDs, dealt out to other ads
control ids_only --words false             # prompts of IDs alone

mkdir -p work/controls
for artifact in data semid tune-sft generate channels; do ln -sfn "../demo/$artifact" "work/controls/$artifact"; done
leadre evaluate --config configs/demo.toml --run controls --extra "$(IFS=,; echo "${rows[*]}")"
