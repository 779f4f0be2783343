#!/usr/bin/env bash
# The loop: what serving sees is what the next model learns from. Logs make a model, the model makes lists, lists answer
# bid requests of simulated users, their clicks and conversions become tables, and these make the model that answers next.
#
# The users want another category than in the logs, so that the second model has something to learn. What changed is told
# at the end, from the artifacts alone; anything that does not add up ends the script with an error.
# Another config: `bash runs/loop.sh my.toml`. LOOP_USERS and LOOP_ROUNDS say how many users ask how often.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
config=${1:-configs/loop.toml} users=${LOOP_USERS:-110} rounds=${LOOP_ROUNDS:-20}
option() { leadre serve --config "$config" --show | sed -n "s/^$1 = //p"; }
work=$(option work) run=$(option run) state=$(option state) url=http://127.0.0.1:$(option port)

serve() { # FLAGS...: a bidder in the background, stopped by `stop`, or when the script ends
    leadre serve --config "$config" "$@" &
    bidder=$!
    trap 'kill $bidder 2>/dev/null || true' EXIT
}
stop() { # it answers what it has begun, and brings the tables up to its log
    kill "$bidder"
    wait "$bidder"
}

# 1. From logs to lists, as in demo.sh. What the last loop left of its users goes, so that the counts below are its own.
rm -rf "$state" "$work/$run-next"
leadre data --config "$config"
leadre semid --config "$config"
leadre tune --config "$config"
leadre generate lists --config "$config"

# 2. Users ask over OpenRTB, see, click and buy; some reports come twice, as they do. More users ask than are in the logs:
#    the newcomers get what is popular, and as soon as they have clicked something, what the language model writes.
serve
python clients/loop.py browse "$url" "$state/asked.json" --users "$users" --rounds "$rounds"
stop

# 3. The event log has become tables in the form of your own logs (README): from here on it is the same pipeline again.
next=(--config "$config" --run "$run-next")
leadre data "${next[@]}" --source files --path "$state/tables" --unordered true
leadre semid "${next[@]}"
leadre tune "${next[@]}"
leadre generate lists "${next[@]}"

# 4. The new run answers, over the same campaigns, budgets and users.
serve --run "$run-next"
python clients/loop.py browse "$url" "$state/asked-next.json" --users "$((users + 10))" --rounds 4 --seed 1
stop

# 5. What changed; and the new run's answers once more, offline, from its log.
python clients/loop.py verify "$state" "$work/$run-next"
leadre evaluate replay "${next[@]}"
