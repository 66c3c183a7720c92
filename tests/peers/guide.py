"""The commands of docs/guide that need a download: every block marked `sh download`, run as it stands.

    LOWRANK=target/release/lowrank python tests/peers/guide.py
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOWRANK = Path(os.environ["LOWRANK"]).resolve()

count = 0
for page in sorted((ROOT / "docs/guide").glob("*.md")):
    for block in re.findall(r"```sh download\n(.*?)```", page.read_text(), re.S):
        count += 1
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(ROOT / "datasets", Path(folder) / "datasets")
            environment = {**os.environ, "L": str(LOWRANK)}
            script = f"set -euo pipefail\nmkdir -p runs\n{block}"
            subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=True)
assert count > 0, "no block of the guide is marked"
print(f"{count} blocks of the guide ran")
