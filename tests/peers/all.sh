#!/usr/bin/env bash
# Every check of this folder that needs no arguments of its own, one after the other; what `cargo xtask peers` runs.
set -uo pipefail
usage='usage: all.sh PYTHON LOWRANK_BINARY'
python=${1:?$usage} binary=${2:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
failed=0
check() {
  echo "== $1"
  "$python" "$here/$1" "${@:2}" || failed=$((failed + 1))
}

check check_logs.py "$binary"
check check_report.py "$binary"
check check_round_trips.py "$binary"
check check_merged.py "$binary"
LOWRANK=$binary check check_compressed.py
LOWRANK=$binary check check_language.py
LOWRANK=$binary check guide.py

echo "$failed failed"
[ "$failed" = 0 ]
