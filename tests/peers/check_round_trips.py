#!/usr/bin/env python3
"""Adapters that lowrank trains, loaded by the real PEFT: the same logits.

    check_round_trips.py LOWRANK_BINARY

Trains each method a few steps on a task of two words over the golden models of ../fixtures, exports what PEFT does
not know (LoTR and the tensor trains) to LoRA, and compares as check_adapters.py does. The other direction, adapters
that PEFT saved, is what the golden files `peft-*` hold.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

import check_adapters

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
TEXTS = ["The cat sat on the red mat.", "it was bad", "a dog"]
CASES = {
    "lora": ["--method", "lora"],
    "rslora-patterns": ["--method", "lora", "--rslora", "--rank-pattern", "value=4", "--alpha-pattern", "value=9"],
    "pissa": ["--method", "lora", "--init", "pissa"],
    "dora": ["--method", "dora", "--targets", "query,output.dense"],
    "bias-all": ["--method", "lora", "--bias", "all"],
    "bias-lora-only": ["--method", "lora", "--bias", "lora-only"],
    "embedding": ["--method", "lora", "--targets", "word_embeddings,value"],
    "lowrank": ["--method", "lowrank"],
    "vera": ["--method", "vera", "--targets", "query,value"],
    "lotr": ["--method", "lotr"],
    "loretta": ["--method", "loretta"],
    "lorta": ["--method", "lorta"],
}
EXPORTED = {"lotr", "loretta", "lorta"}
# Over decoders, tied (small-gpt2, small-qwen2) and not: compared are the mean likelihoods of texts.
DECODERS = {
    "small-llama": {"lora": ["--targets", "all-linear"], "dora": ["--targets", "q_proj,down_proj"], "rslora": ["--rslora", "--targets", "v_proj"]},
    "small-gpt2": {"lora": ["--targets", "c_attn,c_proj"]},
    "small-qwen2": {"lora": ["--targets", "q_proj,v_proj"], "pissa": ["--init", "pissa", "--targets", "q_proj,v_proj"]},
}


def run(binary, *args):
    return subprocess.run([binary, *map(str, args)], check=True, capture_output=True).stdout


def make(binary, base, options, exported, folder):
    """A folder as check_adapters.py takes it."""
    rows = [(f"the {'cat' if i % 2 else 'dog'} sat on the mat {i}", i % 2) for i in range(24)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": t, "label": str(label)}) + "\n" for t, label in rows))
    os.symlink(base, folder / "base")
    run(binary, "finetune", "--model", base, "--train", data, "--dev", data, *options, "--rank", 2, "--lr", "2e-2",
        "--max-steps", 6, "--eval-every", 6, "--batch-size", 8, "-o", folder / "run")
    adapter = folder / "run" / "adapter"
    if exported:
        run(binary, "convert", "--adapter", adapter, "--to", "lora", "-o", folder / "adapter")
    else:
        os.symlink(adapter, folder / "adapter")
    texts = [part for text in TEXTS for part in ("--text", text)]
    predicted = json.loads(run(binary, "predict", "--model", base, "--adapter", adapter, *texts, "--json"))
    cases = [{"text": t, "logits": row["logits"]} for t, row in zip(TEXTS, predicted["rows"])]
    (folder / "expected.json").write_text(json.dumps({"cases": cases}))


def check_decoder(binary, base, name, options, folder, tolerance):
    """Trains on completions and compares the likelihoods of texts; whether they agree."""
    rows = [{"prompt": f"The {'cat' if i % 2 else 'dog'} sat on", "completion": " the mat." if i % 2 else " the ball."} for i in range(24)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = "dora" if name == "dora" else "lora"
    run(binary, "finetune", "--model", base, "--train", data, "--dev", data, "--method", method, *options, "--rank", 2, "--lr", "2e-2",
        "--max-steps", 6, "--eval-every", 6, "--batch-size", 8, "-o", folder / "run")
    adapter = folder / "run" / "adapter"
    texts = [part for text in TEXTS for part in ("--text", text)]
    rows = json.loads(run(binary, "perplexity", "--model", base, "--adapter", adapter, *texts, "--json"))["rows"]
    os.symlink(base, folder / "base")
    os.symlink(adapter, folder / "adapter")
    model = check_adapters.load(folder, None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(base / "tokenizer.json"))
    worst = 0.0
    for text, row in zip(TEXTS, rows):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        worst = max(worst, abs(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item() - row["mean_nll"]))
    good = worst <= tolerance
    print(f"{'ok  ' if good else 'FAIL'} {folder.name}: {len(TEXTS)} texts, largest difference of a mean NLL {worst:.2e}")
    return good


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("lowrank", type=Path)
    p.add_argument("--tolerance", type=float, default=1e-4)
    args = p.parse_args()
    binary = args.lowrank.resolve()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    failed, faults = 0, (OSError, ValueError, KeyError, RuntimeError, TypeError, subprocess.CalledProcessError)
    with tempfile.TemporaryDirectory() as scratch:
        for model in ("bert-cls", "roberta-cls"):
            for name, options in CASES.items():
                folder = Path(scratch) / f"{model}-{name}"
                folder.mkdir()
                try:
                    make(binary, FIXTURES / model, options, name in EXPORTED, folder)
                    failed += not check_adapters.check(folder, args.tolerance)
                except faults as problem:
                    print(f"FAIL {folder.name}: {type(problem).__name__}: {problem}")
                    failed += 1
        for model, cases in DECODERS.items():
            for name, options in cases.items():
                folder = Path(scratch) / f"{model}-{name}"
                folder.mkdir()
                try:
                    failed += not check_decoder(binary, FIXTURES / model, name, options, folder, args.tolerance)
                except faults as problem:
                    print(f"FAIL {folder.name}: {type(problem).__name__}: {problem}")
                    failed += 1
    total = 2 * len(CASES) + sum(map(len, DECODERS.values()))
    print(f"{failed} of {total} round trips failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
