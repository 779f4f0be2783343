#!/usr/bin/env bash
# The loop: the next model trains on served events. A model is trained on logs, its lists answer the bid requests of simulated
# users, their clicks and conversions are compacted into tables, and a second model is trained on these.
#
# The users want another category than in the logs, so the second model has something to learn. The script ends with the
# changes, read from the artifacts alone; a disagreement ends it with an error.
# Another config: `bash runs/loop.sh my.toml`. LOOP_USERS and LOOP_ROUNDS set the number of users and of requests a user.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
config=${1:-configs/loop.toml} users=${LOOP_USERS:-110} rounds=${LOOP_ROUNDS:-20}
option() { leadre serve --config "$config" --show | sed -n "s/^$1 = //p"; }
work=$(option work) run=$(option run) state=$(option state) url=http://127.0.0.1:$(option port)

serve() { # FLAGS...: a bidder in the background, until `stop` or the end of the script
    leadre serve --config "$config" "$@" &
    bidder=$!
    trap 'kill $bidder 2>/dev/null || true' EXIT
}
stop() { # the bidder finishes its requests and brings the tables up to date with its log
    kill "$bidder"
    wait "$bidder"
}

# 1. From logs to lists, as in demo.sh. The state of an earlier loop is deleted, so that the counts below are exact.
rm -rf "$state" "$work/$run-next"
leadre data --config "$config"
leadre semid --config "$config"
leadre tune --config "$config"
leadre generate lists --config "$config"

# 2. Users send OpenRTB requests, see ads, click and buy; some events arrive twice, as in the field. Some users are not in
#    the logs: they get popular ads, and after their first click the answers of the language model.
serve
python clients/loop.py browse "$url" "$state/asked.json" --users "$users" --rounds "$rounds"
stop

# 3. The writer has compacted the event log into tables in the format of your own logs (README): the same pipeline again.
next=(--config "$config" --run "$run-next")
leadre data "${next[@]}" --source files --path "$state/tables" --unordered true
leadre semid "${next[@]}"
leadre tune "${next[@]}"
leadre generate lists "${next[@]}"

# 4. The new run serves, with the same campaigns, budgets and users.
serve --run "$run-next"
python clients/loop.py browse "$url" "$state/asked-next.json" --users "$((users + 10))" --rounds 4 --seed 1
stop

# 5. The changes; then a replay of the new run's answers from its log.
python clients/loop.py verify "$state" "$work/$run-next"
leadre evaluate replay "${next[@]}"
