#!/usr/bin/env bash
# Amazon 2014 Beauty, 5-core, leave-one-out, full ranking: the yardstick of the literature. The data is licensed for
# research only and does not come with this package: give the folder that holds it (what it has to contain stands in
# leadre/data/sources/amazon.py).
#
#     bash runs/beauty.sh path/to/beauty
set -euo pipefail
test $# -eq 1 || { echo "usage: bash runs/beauty.sh FOLDER_WITH_THE_AMAZON_FILES" >&2; exit 2; }
path=$(realpath "$1")
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

# Here every interaction is a request and every item is live; the user's last item is the test, the one before it
# validates. 9,719 of 22,363 users have both on the same day in an arbitrary order, which bounds what can be learnt.
leadre data --config configs/beauty.toml --source amazon --path "$path"
for stage in semid tune generate evaluate; do # what each one does and why: runs/demo.sh
    leadre "$stage" --config configs/beauty.toml
done
