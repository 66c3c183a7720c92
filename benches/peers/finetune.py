#!/usr/bin/env python3
"""The peer of `lowrank finetune`: an encoder fine-tuned on SST-2 with PyTorch, transformers and PEFT on the CPU.

Prints one JSON line: steps, ms_per_step_median, tokens_per_second (padding not counted), peak_rss_mb (VmHWM),
metric (dev accuracy, null without evaluation), wall_s (from the script's first line), trainable, total, versions.
A step is: pad the batch to its longest row, forward, backward, AdamW, scheduler. Tokenization is done before.
"""

import time

STARTED = time.perf_counter()

import argparse
import json
import os
import statistics
from pathlib import Path


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="encoder folder in Hugging Face layout")
    p.add_argument("--data", required=True, help="GLUE root with SST-2/train.tsv and SST-2/dev.tsv")
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--method", choices=["lora", "full", "head"], default="lora")
    p.add_argument("--all-linear", action="store_true", help="LoRA on every linear layer instead of query and value")
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--alpha", type=float, default=16)
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--weight-decay", type=float, default=0.0)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--warmup-ratio", type=float, default=0.06)
    p.add_argument("--max-length", type=int, default=128)
    p.add_argument("--pad-to-max", action="store_true", help="pad every row to --max-length instead of the batch's longest")
    p.add_argument("--eval", action=argparse.BooleanOptionalAction, default=True, help="measure dev accuracy at the end")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    return p.parse_args()


def read_split(folder, split):
    """SST-2 rows as the official files have them: a header, sentence and label, tabs, no quoting."""
    lines = (Path(folder) / "SST-2" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.rsplit("\t", 1) for line in lines if line]
    return [text for text, _ in rows], [int(label) for _, label in rows]


def row_order(rows, wanted, generator):
    """`wanted` row numbers: whole shuffled epochs, one after the other."""
    import torch

    epochs = -(-wanted // rows)
    return torch.cat([torch.randperm(rows, generator=generator) for _ in range(epochs)])[:wanted].tolist()


def peak_rss_mb():
    """The process's VmHWM, or None where the system has no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def build_model(args):
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2)
    if args.method == "head":
        for name, p in model.named_parameters():
            p.requires_grad = name.startswith(("classifier", "score"))
    elif args.method == "lora":
        targets = "all-linear" if args.all_linear else ["query", "value"]
        config = LoraConfig(task_type=TaskType.SEQ_CLS, r=args.rank, lora_alpha=args.alpha, target_modules=targets)
        model = get_peft_model(model, config)
    return model


def collate(ids, labels, pad, length=None):
    """Padded ids and mask `[rows, longest]`, labels, and the number of real tokens."""
    import torch

    longest = length or max(len(row) for row in ids)
    batch = torch.full((len(ids), longest), pad)
    mask = torch.zeros_like(batch)
    for i, row in enumerate(ids):
        batch[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return {"input_ids": batch, "attention_mask": mask, "labels": torch.tensor(labels)}, sum(map(len, ids))


def accuracy(model, ids, labels, pad, batch_size=64):
    """Dev accuracy; rows sorted by length so that little is padding."""
    import torch

    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    hits = 0
    model.eval()
    with torch.no_grad():
        for at in range(0, len(order), batch_size):
            rows = order[at : at + batch_size]
            batch, _ = collate([ids[i] for i in rows], [labels[i] for i in rows], pad)
            hits += (model(**batch).logits.argmax(-1) == batch["labels"]).sum().item()
    return hits / len(order)


def main():
    args = options()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import peft
    import torch
    import transformers
    from transformers import AutoTokenizer, get_linear_schedule_with_warmup
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts, labels = read_split(args.data, "train")
    order = row_order(len(texts), args.steps * args.batch_size, generator)
    encode = lambda rows: tokenizer(rows, truncation=True, max_length=args.max_length, padding=False)["input_ids"]
    ids, labels = encode([texts[i] for i in order]), [labels[i] for i in order]
    pad = tokenizer.pad_token_id

    model = build_model(args)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=args.lr, weight_decay=args.weight_decay)
    scheduler = get_linear_schedule_with_warmup(optimizer, round(args.warmup_ratio * args.steps), args.steps)

    model.train()
    times, tokens = [], 0
    for at in range(0, len(ids), args.batch_size):
        began = time.perf_counter()
        to = at + args.batch_size
        batch, real = collate(ids[at:to], labels[at:to], pad, args.max_length if args.pad_to_max else None)
        model(**batch).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
        tokens += real
    metric = None
    if args.eval:
        dev, dev_labels = read_split(args.data, "dev")
        metric = accuracy(model, encode(dev), dev_labels, pad)

    result = {
        "steps": len(times),
        "ms_per_step_median": 1e3 * statistics.median(times),
        "tokens_per_second": tokens / sum(times),
        "peak_rss_mb": peak_rss_mb(),
        "metric": metric,
        "wall_s": time.perf_counter() - STARTED,
        "trainable": sum(p.numel() for p in trainable),
        "total": sum(p.numel() for p in model.parameters()),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
