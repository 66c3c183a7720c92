#!/usr/bin/env python3
"""Models that `lowrank merge` writes, loaded by transformers: the logits that PEFT gives for the adapter.

    check_merged.py LOWRANK_BINARY [FOLDER...]

Walks the adapters of ../fixtures (those named, or every `peft-*` with a base). What cannot be merged has to be refused in one
line and to leave no folder; methods of other libraries that lowrank refuses by name count as refused. Exit 1 on a failure.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
# Refusals that name the method, for those that are not LoRA.
REFUSED = {"ADALORA": "adalora", "IA3": "ia3"}


def logits_of(folder, cases):
    """The model's logits of each case; of a language model, after the last token."""
    language = "last_logits" in cases[0]
    auto = AutoModelForCausalLM if language else AutoModelForSequenceClassification
    model, found = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"] or found["mismatched_keys"]:
        raise ValueError(f"missing {sorted(found['missing_keys'])}, mismatched {found['mismatched_keys']}")
    model.eval()
    for case in cases:
        inputs = {"input_ids": torch.tensor([case["input_ids"]])}
        if any(case.get("token_type_ids") or []):
            inputs["token_type_ids"] = torch.tensor([case["token_type_ids"]])
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        yield (logits[-1] if language else logits), torch.tensor(case["last_logits" if language else "logits"])


def check(binary, adapter, tolerance):
    """What came of a folder, and whether it is right."""
    told = json.loads((adapter / "expected.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "merged"
        command = [binary, "merge", "--model", FIXTURES / told["base"], "--adapter", adapter, "-o", merged]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode != 0:
            message = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
            kind = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
            expected = "refused" in told or "not_mergeable" in told or (kind in REFUSED and kind.lower() in message.lower())
            return f"refused: {message[:120]}", expected and not merged.exists() and "panicked" not in done.stderr
        if "refused" in told or "not_mergeable" in told:
            return "merged, which PEFT cannot", False
        worst = max((got - expect).abs().max().item() for got, expect in logits_of(merged, told["cases"]))
        return f"largest difference {worst:.2e}", worst <= tolerance


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("lowrank", type=Path)
    p.add_argument("folders", nargs="*", type=Path)
    p.add_argument("--tolerance", type=float, default=2e-4)
    args = p.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    binary = args.lowrank.resolve()
    folders = args.folders
    if not folders:
        found = sorted(FIXTURES.glob("peft-*/expected.json"))
        folders = [f.parent for f in found if (f.parent / "adapter_config.json").exists() and "base" in json.loads(f.read_text(encoding="utf-8"))]
    failed = 0
    for folder in folders:
        try:
            said, good = check(binary, folder, args.tolerance)
        except (OSError, ValueError, KeyError, RuntimeError) as problem:
            said, good = f"{type(problem).__name__}: {problem}", False
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {folder.name}: {said}")
    print(f"{failed} of {len(folders)} merges failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
