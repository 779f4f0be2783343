#!/usr/bin/env bash
# From real logs to generated ads on a laptop: `make demo` runs this. About 25 minutes on 2 cores, no GPU needed.
#
# Each line is one stage. It reads the artifacts of earlier stages, writes its own under work/demo/, and is skipped if inputs
# and config are unchanged: run this script again after a kill, or after a change of one section of the config.
# `leadre VERB --help` lists the options of a stage; `--show` at the end of a line prints the effective config.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

# 1. A year in the baskets of 2,469 households, as display-ad logs. An ad is a product line; a request is a visit to
#    a store; its live inventory is what that store had on display or in the mailer in that week; a conversion is a
#    promoted line that was bought. Train on weeks 1-40, validate on 41-46, test on 47-53: no stage sees the future.
leadre data --config configs/demo.toml

# 2. The text of each line is embedded as a vector, and the vector is quantised to two codes, coarse to fine; a third code
#    separates lines that share both. Lines that share a prefix are similar, so the model generalises from ad to ad.
leadre semid --config configs/demo.toml

# 3. A small language model learns to answer a prompt (profile, purchases, current visit) with the codes of a line that was
#    bought. It trains under the mask of serving, the lines live at that visit: without it the model would spend its
#    training on separating live from dead ads, which the mask does already. At the end, validation visits decide how far
#    the model departs from its prior, the counts of household and line.
leadre tune --config configs/demo.toml

# 4. Conversions differ in value. A second model starts from the first: prices enter prior and pointer, and pairs of lines
#    that were live in one visit teach it to prefer the more valuable one, also over its own answers.
leadre generate --config configs/demo.toml --split train --users 80 --step generate-negatives
leadre tune dpo --config configs/demo.toml

# 5. Both models generate by beam search along the trie of live codes, so every result is an ad that can be shown. The lists
#    of the validation weeks tune a baseline that costs nothing: the first model's lists, re-ranked by price.
leadre generate --config configs/demo.toml
leadre generate --config configs/demo.toml --model dpo --step generate-dpo
leadre generate --config configs/demo.toml --split valid --step generate-valid

# 6. A ranker predicts how likely a household is to buy each live line: boosted trees on counts of the past. Retrieval needs
#    an order alone; a bid needs a probability, so the ranker is calibrated on weeks after its training.
leadre rank train --config configs/demo.toml
leadre rank calibrate --config configs/demo.toml
leadre rank score --config configs/demo.toml

# 7. All methods rank the whole live inventory of the same test visits, with bootstrap intervals over households. Open
#    work/demo/evaluate/report.html.
leadre evaluate --config configs/demo.toml --rerank work/demo/generate-valid \
    --extra dpo=work/demo/generate-dpo,ranker=work/demo/rank-score
