#!/usr/bin/env bash
# The full run on the same logs as the demo: every test visit, more steps. configs/journey.toml says on which hardware,
# how long, and what came out. A GPU is used unasked. Resumable: start it again and it carries on.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

for stage in data semid tune generate evaluate; do # what each one does and why: runs/demo.sh
    leadre "$stage" --config configs/journey.toml
done
