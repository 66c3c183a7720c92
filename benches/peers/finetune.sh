#!/usr/bin/env bash
# `lowrank finetune` beside PyTorch + PEFT on SST-2: runs of the two take turns, then a Markdown table of medians.
# PYTHON is the interpreter of the environment that tests/peers/setup.sh makes; MODEL an encoder folder; DATA a GLUE
# root. Further options go to compare.py (--rounds, --steps, --method lora|full|head, --all-linear, --no-eval, …).
set -euo pipefail
usage='usage: finetune.sh PYTHON LOWRANK_BINARY MODEL DATA [options]'
python=${1:?$usage} binary=${2:?$usage} model=${3:?$usage} data=${4:?$usage}
shift 4
exec "$python" "$(dirname "$0")/compare.py" finetune --binary "$binary" --model "$model" --data "$data" "$@"
