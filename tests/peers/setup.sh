#!/usr/bin/env bash
# Makes the virtual environment that the fixture makers, the peer checks and the peer benches run in.
# About 5 GB on disk; needs python3 (3.11 or later) with pip. Safe to run again.
set -euo pipefail
venv=${1:?usage: setup.sh VENV_DIR}
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-deps -r "$here/requirements.txt"
"$venv/bin/python" -c 'import torch, transformers, peft
print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")'
