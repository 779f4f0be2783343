#!/usr/bin/env bash
# Rows of LEADRE that show what its parts are worth (leadre/evaluate/ablation/variants.py has all rows):
#
#   bash runs/rows.sh screen      one seed, 380 steps, on the validation weeks: configs/rows.toml
#   bash runs/rows.sh seeds       three seeds at journey length, on the test weeks: configs/seeds.toml
#   bash runs/rows.sh seeds 2     seed 2 alone, without a comparison: the parts of a long run, on any day
#
# Every row is a run of its own, work/<run>-<row>-<seed>. A call of `leadre` takes an hour or less on two cores; after a kill,
# the same command resumes. The figures are in
# work/rows/evaluate-ablation/ablation.json and work/seeds/evaluate-ablation/ablation.json. The test weeks are read once,
# in the comparison at the end of `seeds`.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

train_seed() { # SEED: the rows of one seed, one training at a time; those of earlier seeds are current
    for rows in words words,random-body words,dpo; do
        leadre evaluate ablation --config configs/seeds.toml --variants "$rows" --seeds "$(($1 + 1))" \
            --left-out-seeds "$(($1 + 1))" --compare false
    done
}

case "${1:-}" in
screen) leadre evaluate ablation --config configs/rows.toml ;;
seeds)
    if [ -n "${2:-}" ]; then
        train_seed "$2"
    else
        for seed in 0 1 2; do train_seed "$seed"; done
        leadre evaluate ablation --config configs/seeds.toml
    fi
    ;;
*)
    echo "usage: bash runs/rows.sh screen | seeds [0|1|2]" >&2
    exit 2
    ;;
esac
