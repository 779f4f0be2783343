#!/usr/bin/env bash
# The figures of docs/results/retrieval.md: the demo's model and all rivals on every test visit, the fresh test, and both
# gathered. After a kill, the same command resumes. It reads two test sets: work/readings.jsonl records it. The rows of
# Beauty are those of runs/beauty.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

for stage in data semid tune generate evaluate; do # runs/demo.sh explains each stage
    users=()
    [ "$stage" != generate ] || users=(--users 0)
    leadre "$stage" --config configs/demo.toml --run visits "${users[@]}"
    leadre "$stage" --config configs/fresh.toml
done
cp work/visits/evaluate/metrics.json docs/results/retrieval/journey.json
cp work/fresh/evaluate/metrics.json docs/results/retrieval/fresh.json
python runs/gather.py journey=docs/results/retrieval/journey.json fresh=docs/results/retrieval/fresh.json
python tests/docs/test_results.py # the tables of the pages
