#!/usr/bin/env python3
"""Adapters that lowrank trains, loaded by the real PEFT: the same logits.

    check_round_trips.py LOWRANK_BINARY

Trains each method a few steps on a task of two words over the golden models of ../fixtures, exports what PEFT does
not know (LoTR and the tensor trains) to LoRA, and compares as check_adapters.py does. Tables and heads of tied models
are adapted, and adapters that PEFT saved (whole tables, resized vocabularies) are trained further. The other direction,
adapters that PEFT saved, is what the golden files `peft-*` hold.
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
LLAMA = {
    "lora": ["--targets", "all-linear"],
    "dora": ["--targets", "q_proj,down_proj"],
    "rslora": ["--rslora", "--targets", "v_proj"],
    "pissa": ["--init", "pissa", "--targets", "q_proj,v_proj"],
    "olora": ["--init", "olora", "--targets", "q_proj,v_proj"],
    "table": ["--targets", "embed_tokens,v_proj"],
    "head": ["--targets", "lm_head,v_proj"],
}
DECODERS = {
    "small-llama": LLAMA,
    "small-llama-tied": LLAMA,
    "small-qwen2": LLAMA,
    "small-gpt2": {
        "lora": ["--targets", "c_attn,c_proj"],
        "pissa": ["--init", "pissa", "--targets", "c_attn"],
        "table": ["--targets", "wte,c_attn"],
        "head": ["--targets", "lm_head,c_attn"],
    },
}
# PEFT's own adapters, trained further: rank and alpha are theirs.
CONTINUED = {
    "small-llama": ["save-embedding", "save-both", "lora-embedding", "lora-head", "resized", "resized-saved"],
    "small-llama-tied": ["save-embedding", "save-head", "lora-embedding", "lora-head"],
    "small-qwen2": [
        "save-embedding", "save-head", "save-both", "save-both-tied", "save-embedding-tied", "lora-embedding", "lora-head",
        "resized", "resized-saved",
    ],
    "small-gpt2": ["save-both", "save-both-tied", "lora-embedding", "lora-head"],
}
# Other heads over encoders: words with tags, several labels to a text.
TAGGED = [{"tokens": ["the", w, "sat", "on", "the", "mat"], "tags": ["O", "B-PET", "O", "O", "O", "B-LOC"]} for w in ("cat", "dog")] * 6
SEVERAL = [{"text": f"the {w} sat on the mat", "labels": labels} for w, labels in (("cat", ["small"]), ("dog", ["loud", "small"]), ("sea", []))] * 6


def run(binary, *args):
    return subprocess.run([binary, *map(str, args)], check=True, capture_output=True).stdout


def one_label():
    return [{"text": f"the {'cat' if i % 2 else 'dog'} sat on the mat {i}", "label": str(i % 2)} for i in range(24)]


def make(binary, base, options, exported, folder, rows=None):
    """A folder as check_adapters.py takes it."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows or one_label()))
    os.symlink(base, folder / "base")
    run(binary, "finetune", "--model", base, "--train", data, "--dev", data, *options, "--rank", 2, "--lr", "2e-2",
        "--max-steps", 6, "--eval-every", 6, "--batch-size", 8, "-o", folder / "run")
    adapter = folder / "run" / "adapter"
    if exported:
        run(binary, "convert", "--adapter", adapter, "--to", "lora", "-o", folder / "adapter")
    else:
        os.symlink(adapter, folder / "adapter")
    # RoBERTa's words follow a space, the first one too where words are tagged.
    shown = [" " + text for text in TEXTS] if rows and "tags" in rows[0] else TEXTS
    texts = [part for text in shown for part in ("--text", text)]
    predicted = json.loads(run(binary, "predict", "--model", base, "--adapter", adapter, *texts, "--json"))
    cases = [{"text": t, "logits": row["logits"]} for t, row in zip(shown, predicted["rows"])]
    (folder / "expected.json").write_text(json.dumps({"cases": cases}))


def check_decoder(binary, base, name, options, folder, tolerance):
    """Trains on completions and compares the likelihoods of texts; whether they agree."""
    rows = [{"prompt": f"The {'cat' if i % 2 else 'dog'} sat on", "completion": " the mat." if i % 2 else " the ball."} for i in range(24)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = "dora" if name == "dora" else "lora"
    options = options if "--init-from" in options else [*options, "--rank", 2]
    run(binary, "finetune", "--model", base, "--train", data, "--dev", data, "--method", method, *options, "--lr", "2e-2",
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


def told(problem):
    """A problem with what a failed command said."""
    return problem.stderr.decode().strip().splitlines()[-1] if isinstance(problem, subprocess.CalledProcessError) else problem


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
                    print(f"FAIL {folder.name}: {type(problem).__name__}: {told(problem)}")
                    failed += 1
        for model in ("bert-encoder", "roberta-encoder"):
            for name, rows in {"words": TAGGED, "several-labels": SEVERAL}.items():
                folder = Path(scratch) / f"{model}-{name}"
                folder.mkdir()
                try:
                    make(binary, FIXTURES / model, ["--method", "lora"], False, folder, rows)
                    failed += not check_adapters.check(folder, args.tolerance)
                except faults as problem:
                    print(f"FAIL {folder.name}: {type(problem).__name__}: {told(problem)}")
                    failed += 1
        decoders = {model: dict(cases) for model, cases in DECODERS.items()}
        for model, names in CONTINUED.items():
            for name in names:
                start = FIXTURES / f"peft-{model}-{name}"
                config = json.loads((start / "adapter_config.json").read_text())
                decoders[model][f"continued-{name}"] = ["--init-from", start, "--rank", config["r"], "--alpha", config["lora_alpha"]]
        for model, cases in decoders.items():
            for name, options in cases.items():
                folder = Path(scratch) / f"{model}-{name}"
                folder.mkdir()
                try:
                    failed += not check_decoder(binary, FIXTURES / model, name, options, folder, args.tolerance)
                except faults as problem:
                    print(f"FAIL {folder.name}: {type(problem).__name__}: {told(problem)}")
                    failed += 1
    total = 2 * len(CASES) + 4 + sum(map(len, decoders.values()))
    print(f"{failed} of {total} round trips failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
