#!/usr/bin/env bash
# `lowrank embed` or `lowrank generate` beside transformers on PyTorch and beside candle, random weights of real size:
# their runs take turns, then a Markdown table of medians. PYTHON is the interpreter of the environment that
# tests/peers/setup.sh makes; candle's side is built here. Further options go to compare.py (--shape, --lengths
# mixed|full, --rounds, …).
set -euo pipefail
usage='usage: inference.sh PYTHON LOWRANK_BINARY WORK_DIR [options]'
python=${1:?$usage} binary=${2:?$usage} work=${3:?$usage}
shift 3
here=$(cd "$(dirname "$0")" && pwd)
cargo build --quiet --release --manifest-path "$here/candle/Cargo.toml" --target-dir "$work/candle-target"
exec "$python" "$here/compare.py" inference --binary "$binary" --work "$work" \
  --candle "$work/candle-target/release/candle-peer" "$@"
