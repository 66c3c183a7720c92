#!/usr/bin/env python3
"""Opens a report of `lowrank report` in a headless Chromium at desk and phone width.

    check_report.py LOWRANK_BINARY [--chromium FILE] [--runs DIR] [--screenshots DIR]

Without --runs, on a made-up grid of nine methods, five tasks and two seeds. Fails if the page logs to the console,
is wider than the window, or if texts of a figure overlap each other or are cut. Debian: `apt-get install chromium`.
"""

import argparse
import html
import json
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = (1280, 390)
METHODS = [
    ("full", 0, 22713216, 0.92), ("dora", 8, 82000, 0.86), ("lora", 1, 9986, 0.84), ("lora", 8, 74498, 0.865),
    ("lotr", 2, 4612, 0.80), ("lotr", 8, 14914, 0.83), ("lotr", 32, 62978, 0.85), ("head", 0, 770, 0.70),
    ("bitfit", 0, 26500, 0.78),
]
TASKS = {"cola": "matthews", "sst2": "accuracy", "mrpc": "f1", "stsb": "pearson", "rte": "accuracy"}

# Runs in a page around the report: a frame of each width, measured once it is there.
HARNESS = """<!DOCTYPE html><body style="margin:0">%s<pre id="found"></pre><script>
const found = [];
function measure(frame) {
  const page = frame.contentDocument, width = frame.clientWidth, add = text => found.push(`${width}: ${text}`);
  const wide = page.documentElement.scrollWidth;
  if (wide > width) add(`the page is ${wide} wide`);
  const pictures = page.querySelectorAll('svg[role=img]');
  if (pictures.length === 0) add('no picture');
  pictures.forEach(picture => {
    const name = picture.querySelector('title').textContent, all = picture.getBoundingClientRect();
    const texts = [...picture.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([text, box], index) => {
      if (box.left < all.left - 1 || box.right > all.right + 1 || box.top < all.top - 1 || box.bottom > all.bottom + 1)
        add(`${name}: "${text}" is cut`);
      if (box.height < 8) add(`${name}: "${text}" is too small to read`);
      texts.slice(index + 1).forEach(([other, its]) => {
        if (box.left < its.right && its.left < box.right && box.top < its.bottom - 2 && its.top < box.bottom - 2)
          add(`${name}: "${text}" overlaps "${other}"`);
      });
    });
  });
  page.querySelectorAll('p, h1, h2, h3, li, summary').forEach(part => {
    if (part.offsetParent && part.getBoundingClientRect().right > width) add(`"${part.textContent.slice(0, 40)}" is cut`);
  });
  add(`${pictures.length} pictures measured`);
}
window.onload = () => {
  document.querySelectorAll('iframe').forEach(measure);
  document.getElementById('found').textContent = JSON.stringify(found);
};
</script></body>"""


def made_up_grid(root):
    random.seed(1)
    for method, rank, trainable, quality in METHODS:
        for task, metric in TASKS.items():
            for seed in (0, 1):
                score = quality - random.random() * 0.04
                evals = [
                    {"step": step, "metrics": {metric: score * (1 - math.exp(-step / 100))}} for step in range(100, 501, 100)
                ]
                config = {"lr": 5e-4, "seed": seed, "max_steps": 500, **({"rank": rank} if rank else {})}
                folder = root / f"{method}-{rank}-{task}-{seed}"
                folder.mkdir(parents=True)
                record = {
                    "format": 1,
                    "run_info": {"command": ["lowrank", "finetune"], "config": config, "version": "0.1.0", "backend": "flex"},
                    "train_info": {
                        "status": "done", "steps": 500, "evals": evals, "metric_name": metric, "metric": score,
                        "trainable": trainable, "ms_per_step_median": 400 + rank, "tokens_per_second": 900,
                        "peak_rss_mb": 600, "wall_s": 200, "adapter_bytes": 4 * trainable,
                    },
                    "meta_info": {"model": "models/mini-bert", "task": task, "method": method},
                }
                (folder / "run.json").write_text(json.dumps(record))


def chromium(program, *args):
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binary")
    p.add_argument("--chromium", default=next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None))
    p.add_argument("--runs", type=Path)
    p.add_argument("--screenshots", type=Path)
    args = p.parse_args()
    if args.chromium is None:
        sys.exit("no Chromium here; install one, or name it with --chromium")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = args.runs or folder / "runs"
        if args.runs is None:
            made_up_grid(runs)
        report = folder / "report.html"
        subprocess.run([args.binary, "report", str(runs), "-o", str(report)], check=True, stdout=subprocess.DEVNULL)

        frames = "".join(f'<iframe src="report.html" style="border:0;width:{w}px;height:4000px"></iframe>' for w in WIDTHS)
        (folder / "harness.html").write_text(HARNESS % frames)
        seen = chromium(
            args.chromium, "--allow-file-access-from-files", "--virtual-time-budget=10000", "--window-size=1700,1000",
            "--dump-dom", f"file://{folder}/harness.html",
        )
        found = re.search(r'<pre id="found">(.*?)</pre>', seen.stdout, re.S)
        found = json.loads(html.unescape(found.group(1))) if found and found.group(1) else ["nothing was measured"]
        measured = [line for line in found if line.endswith("pictures measured")]
        faults = [line for line in found if line not in measured]
        faults += [line for line in seen.stderr.splitlines() if "CONSOLE" in line]

        if args.screenshots:
            args.screenshots.mkdir(parents=True, exist_ok=True)
            for width in WIDTHS:
                page = folder / f"frame-{width}.html"
                page.write_text(
                    f'<body style="margin:0"><iframe src="report.html" style="border:0;width:{width}px;height:9000px"></iframe>'
                )
                shot = args.screenshots / f"report-{width}.png"
                chromium(args.chromium, f"--window-size={max(width, 500)},9000", f"--screenshot={shot}", f"file://{page}")

        print(*measured, *faults, sep="\n")
        sys.exit(1 if faults or len(measured) != len(WIDTHS) else 0)


if __name__ == "__main__":
    main()
