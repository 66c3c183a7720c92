#!/usr/bin/env python3
"""Loads adapters that lowrank wrote with the real PEFT and compares logits.

    check_adapters.py FOLDER...

Each FOLDER holds `base/` (a model in Hugging Face layout), `adapter/` (adapter_config.json and weights) and
`expected.json`: {"cases": [{"text": …, "text_pair": …?, "logits": […]}]}, or lowrank's own {"rows": [{"logits": …}]}
with the texts beside them; a case may carry `input_ids` (and `token_type_ids`) that are then used as they are, and
`max_length` may stand at the top. Logits of a language model are `[tokens, vocabulary]`.

Loading is strict: a tensor of the file that PEFT does not want, or one that PEFT wants and the file lacks, is a
failure. Exit 1 if anything differs by more than --tolerance, 2 if a folder cannot be read.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from peft.utils import load_peft_weights
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.utils import logging

ARCHITECTURES = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
    None: AutoModel,
}


def load(folder, outputs):
    """The base with the adapter on it; a ValueError if their tensors do not match one to one."""
    config = PeftConfig.from_pretrained(folder / "adapter")
    options = {"num_labels": outputs} if config.task_type in ("SEQ_CLS", "TOKEN_CLS") else {}
    # The head for another number of labels is the adapter's own.
    options["ignore_mismatched_sizes"] = True
    base = ARCHITECTURES[config.task_type].from_pretrained(folder / "base", dtype=torch.float32, **options)
    config.inference_mode = True
    table = base.get_input_embeddings().weight.shape
    rows = {v.shape[0] for k, v in load_peft_weights(folder / "adapter", device="cpu").items() if k.endswith(("embed_tokens.weight", "wte.weight")) and v.shape[1] == table[1]}
    if rows - {table[0]}:
        # A vocabulary of another size: PEFT's users resize the base first.
        base.resize_token_embeddings(rows.pop(), mean_resizing=False)
    model = get_peft_model(base, config)
    wanted = {k for k in model.state_dict() if "lora_" in k or "vera_" in k or ".modules_to_save.default" in k}
    found = load_peft_weights(folder / "adapter", device="cpu")
    result = model.load_adapter(folder / "adapter", "default")
    missing = sorted(wanted.intersection(result.missing_keys))
    if missing or result.unexpected_keys:
        raise ValueError(f"missing {missing}, unexpected {sorted(result.unexpected_keys)}, of {len(found)} tensors")
    return model.eval()


def inputs_of(case, tokenizer, max_length):
    """Token ids (and types where the model takes them) of a case."""
    if "input_ids" in case:
        inputs = {"input_ids": torch.tensor([case["input_ids"]])}
        if any(case.get("token_type_ids") or []):
            inputs["token_type_ids"] = torch.tensor([case["token_type_ids"]])
        return inputs
    pair = case.get("text_pair")
    options = dict(truncation=True, max_length=max_length) if max_length else {}
    return dict(tokenizer([case["text"]], None if pair is None else [pair], return_tensors="pt", **options))


def width(logits):
    """Number of labels: of a text, or of its first token."""
    return len(logits[0]) if isinstance(logits[0], list) else len(logits)


def check(folder, tolerance):
    """The largest difference in a folder, printed; whether all is within tolerance."""
    told = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    cases = told.get("cases") or told.get("rows")
    if not cases:
        raise ValueError("expected.json has no cases")
    model = load(folder, width(cases[0]["logits"]))
    by_text = any("input_ids" not in case for case in cases)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base") if by_text else None
    limit = told.get("max_length") or (tokenizer.model_max_length if tokenizer and tokenizer.model_max_length < 1e6 else None)
    worst, at = 0.0, None
    for number, case in enumerate(cases):
        with torch.no_grad():
            got = model(**inputs_of(case, tokenizer, limit)).logits[0]
        expected = torch.tensor(case["logits"])
        if got.shape != expected.shape:
            raise ValueError(f"case {number}: logits {list(expected.shape)}, PEFT has {list(got.shape)}")
        off = (got - expected).abs().max().item()
        if not math.isfinite(off):
            raise ValueError(f"case {number}: logits are not finite")
        if off > worst:
            worst, at = off, case.get("name", case.get("text", number))
    good = worst <= tolerance
    print(f"{'ok  ' if good else 'FAIL'} {folder}: {len(cases)} texts, largest difference {worst:.2e}" + ("" if good else f" at {at!r}"))
    return good


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    p.add_argument("--tolerance", type=float, default=1e-4)
    args = p.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    status = 0
    for folder in args.folders:
        try:
            good = check(folder, args.tolerance)
        except (OSError, ValueError, KeyError, RuntimeError) as problem:
            print(f"FAIL {folder}: {type(problem).__name__}: {problem}")
            status = 2
            continue
        status = status or (0 if good else 1)
    sys.exit(status)


if __name__ == "__main__":
    main()
