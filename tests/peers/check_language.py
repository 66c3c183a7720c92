"""Adapters of language models that lowrank has trained, in PEFT and transformers: the same log-probabilities.

    LOWRANK=target/release/lowrank python tests/peers/check_language.py [MODEL [ROWS]]

Trains a few steps of LoRA and DoRA on MODEL (datasets/models/mini-llama), loads the adapter with PEFT and the merged model
with transformers, and compares the mean log-probability of texts and of every prefix of them to 1e-4.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
LOWRANK = Path(os.environ["LOWRANK"]).resolve()
MODEL = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "datasets/models/mini-llama"
ROWS = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "datasets/mini-instruct/dev.jsonl"
TOLERANCE = 1e-4
SENTENCE = "the old pilot waved to two sailors near the harbour, and they did not wave back."
TEXTS = [SENTENCE[:end] for end in range(8, len(SENTENCE) + 1)]


def lowrank(*args):
    done = subprocess.run([LOWRANK, *map(str, args), "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def ours(*args):
    texts = [option for text in TEXTS for option in ("--text", text)]
    return [row["mean_nll"] for row in lowrank("perplexity", *args, *texts)["rows"]]


def theirs(model, tokenizer):
    model.eval()
    found = []
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            found.append(model(ids, labels=ids).loss.item() if ids.shape[1] > 1 else None)
    return found


def compare(name, one, other):
    pairs = [(a, b) for a, b in zip(one, other) if a is not None and b is not None]
    assert len(pairs) > 20, name
    difference = max(abs(a - b) for a, b in pairs)
    print(f"{name}: {len(pairs)} texts, largest difference {difference:.1e}")
    return difference <= TOLERANCE


def main():
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    base = lambda path: transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    good = []
    with tempfile.TemporaryDirectory() as scratch:
        untouched = ours("--model", MODEL)
        for method in ("lora", "dora"):
            run, merged = Path(scratch) / method, Path(scratch) / f"{method}-merged"
            lowrank(
                "finetune", "--model", MODEL, "--train", ROWS, "--dev", ROWS, "--method", method, "--rank", 4, "--alpha", 8,
                "--targets", "all-linear", "--lr", 5e-3, "--batch-size", 4, "--max-steps", 8, "--max-length", 128,
                "--eval-every", 8, "--write-samples", 0, "--show-samples", 0, "-o", run,
            )
            tuned = ours("--model", MODEL, "--adapter", run)
            assert max(abs(a - b) for a, b in zip(tuned, untouched) if a is not None) > 1e-2, "the training changed nothing"
            model = peft.PeftModel.from_pretrained(base(MODEL), run / "adapter")
            good.append(compare(f"{method} in PEFT", tuned, theirs(model, tokenizer)))
            lowrank("merge", "--model", MODEL, "--adapter", run, "--dtype", "f32", "-o", merged)
            good.append(compare(f"{method} merged, in transformers", tuned, theirs(base(merged), tokenizer)))
    sys.exit(0 if all(good) else 1)


main()
