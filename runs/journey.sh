#!/usr/bin/env bash
# The full run on the logs of the demo: every test visit, more steps. The head of configs/journey.toml has hardware, duration
# and results. A GPU is used if there is one. After a kill, the same command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

for stage in data semid tune generate evaluate; do # runs/demo.sh explains each stage
    leadre "$stage" --config configs/journey.toml
done
