"""Loads folders made by `lowrank compress` with the snippet of docs/compressed-format.md and compares likelihoods.

    LOWRANK=target/release/lowrank .venv/bin/python tests/peers/check_compressed.py [MODEL...]
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[2]
MODELS = ["llama", "gpt2", "gpt-neox", "stablelm", "mixtral", "qwen3-moe", "gpt-oss", "quantised-mxfp4"]
WAYS = [
    ["--method", "svd", "--ratio", "0.3"],
    ["--method", "tt", "--ratio", "0.3"],
    ["--method", "tt", "--tt-order", "3", "--ratio", "0.3"],
    ["--method", "shared", "--sides", "both", "--ratio", "0.3"],
    ["--method", "shared", "--sides", "one", "--ratio", "0.3"],
    ["--method", "auto", "--ratio", "0.3", "--targets", ".*", "--exclude", "lm_head,embed_out"],
]
TEXT = "The cat sat on the red mat."


def lowrank(*args):
    output = subprocess.run([os.environ["LOWRANK"], *map(str, args), "--json"], capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout)


def main():
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    guide = (ROOT / "docs/compressed-format.md").read_text()
    scope = {}
    exec(re.search(r"```python\n(.*?)```", guide, re.S)[1], scope)
    models = [Path(m) for m in sys.argv[1:]] or [ROOT / "tests/fixtures" / name for name in MODELS]
    worst = 0.0
    with tempfile.TemporaryDirectory() as work:
        for model in models:
            for i, way in enumerate(WAYS):
                folder = Path(work) / f"{model.name}-{i}"
                report = lowrank("compress", "--model", model, *way, "-o", folder)
                assert report["layers"]["ratio"] > 0.25, report["layers"]
                ours = lowrank("perplexity", "--model", folder, "--text", TEXT)["rows"][0]["mean_nll"]
                ids = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))(TEXT)["input_ids"]
                loaded = scope["load"](folder)
                # The default groups products in a way that takes widths of whole vectors only.
                loaded.set_experts_implementation("eager")
                with torch.no_grad():
                    logits = loaded(torch.tensor([ids])).logits[0].double().log_softmax(-1)
                theirs = -logits[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean().item()
                worst = max(worst, abs(ours - theirs))
                print(f"{model.name:12} {' '.join(way):60} {ours:.6f} {theirs:.6f}")
                assert abs(ours - theirs) < 1e-4
    print(f"largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
