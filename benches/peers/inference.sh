#!/usr/bin/env bash
# `lowrank embed` or `lowrank generate` beside transformers on PyTorch, random weights of real size: runs of the two
# take turns, then a Markdown table of medians. PYTHON is the interpreter of the environment that
# tests/peers/setup.sh makes. Further options go to compare.py (--shape, --lengths mixed|full, --rounds, …).
set -euo pipefail
usage='usage: inference.sh PYTHON LOWRANK_BINARY WORK_DIR [options]'
python=${1:?$usage} binary=${2:?$usage} work=${3:?$usage}
shift 3
exec "$python" "$(dirname "$0")/compare.py" inference --binary "$binary" --work "$work" "$@"
