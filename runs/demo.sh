#!/usr/bin/env bash
# From real logs to generated ads on a laptop: `make demo` runs this. About 20 minutes on 2 cores, no GPU needed.
#
# Each line is one stage. It reads the artifacts to its left, writes its own under work/demo/, and is skipped when they
# and its config have not changed: run this again after a kill, or after editing one section of the config.
# What any line takes: `leadre VERB --help`. What it will use: the same line with `--show`.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

# 1. A year in the baskets of 2,469 households, as display-ad logs. An ad is a product line; a request is a visit to
#    a store; its live inventory is what that store had on display or in the mailer in that week; a conversion is a
#    promoted line that was bought. Train on weeks 1-40, validate on 41-46, test on 47-53: nothing may see the future.
leadre data --config configs/demo.toml

# 2. Each line's text becomes a vector, each vector two codes, coarse to fine, and a third tells apart lines that share
#    both. Lines that share a prefix are alike: that is what lets a language model generalise from one ad to the next.
leadre semid --config configs/demo.toml

# 3. A small language model learns to answer a prompt (who is this, what did they buy, where are they now) with the
#    codes of a line that was bought. It trains under the mask it will serve under, the lines live at that visit: a
#    model that learns to tell live ads from dead ones learns what the mask knows already. Sentences that say what IDs mean
#    (the title of an ID, the ID of a title, the category of its first code) come first, then take a quarter of each step.
leadre tune --config configs/demo.toml

# 4. Not all conversions are worth the same. A second model, from the first: prices weigh in, and pairs of lines that
#    households had the choice of teach it to prefer what brings more money, over what it would have answered itself too.
leadre generate --config configs/demo.toml --split train --users 80 --step generate-negatives
leadre tune dpo --config configs/demo.toml

# 5. Beam search along the trie of live codes, by both models: what comes out is an ad that could be shown, always. The
#    lists of the validation weeks are for a rival that costs nothing: the first model's lists, re-ranked by price.
leadre generate --config configs/demo.toml
leadre generate --config configs/demo.toml --model dpo --step generate-dpo
leadre generate --config configs/demo.toml --split valid --step generate-valid

# 6. The same test visits for every rival, full ranking over the live inventory, and intervals by household. Open
#    work/demo/evaluate/report.html.
leadre evaluate --config configs/demo.toml --extra dpo=work/demo/generate-dpo --rerank work/demo/generate-valid
