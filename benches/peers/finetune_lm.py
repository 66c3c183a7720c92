#!/usr/bin/env python3
"""`lowrank finetune` of a language model beside PyTorch + PEFT: the same rows in the same order, the same first factors.

    finetune_lm.py MODEL TRAIN DEV [options]          LOWRANK names the binary; `cargo xtask peers finetune_lm …` sets it
    finetune_lm.py MODEL --lengths mixed|full [options]      rows of words of these lengths, for speed and memory

TRAIN and DEV are rows of `instruction`/`input`/`output`, `messages`, `prompt`/`completion` or `text`, as JSON or JSON lines.
Both sides begin with one adapter that PEFT makes (B = 0) and train it without dropout. Printed are the losses of the first
steps with their largest difference, the dev losses, real tokens per second (padding not counted) and peak memory, both
measured from outside the processes, which take turns. A row of several answers is learnt from its last.
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from compare import machine, rounds, run_json, table

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("train", type=Path, nargs="?")
    p.add_argument("dev", type=Path, nargs="?")
    p.add_argument("--lengths", choices=["mixed", "full"], help="made-up rows: log-normal with median 150, at most --max-length; or all of it")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--epochs", type=float, help="instead of --steps")
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--max-length", type=int, default=512)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--alpha", type=float, default=32)
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--warmup-ratio", type=float, default=0.0)
    p.add_argument("--scheduler", choices=["constant", "linear"], default="constant")
    p.add_argument("--weight-decay", type=float, default=0.0)
    p.add_argument("--loss-on", choices=["completion", "all"], default="completion")
    p.add_argument("--recompute", action="store_true", help="recomputation here, gradient checkpointing there")
    p.add_argument("--dtype", default="float32", help="type of PyTorch's base")
    p.add_argument("--peer-rows", type=int, help="rows that PyTorch runs at once: a step of --batch-size rows accumulates, nothing is padded at 1")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--losses", type=int, default=20, help="first steps whose losses are printed")
    p.add_argument("--output", type=Path, help="file for all results as JSON")
    p.add_argument("--ours-extra", default="", help="further options of lowrank finetune")
    p.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if not args.lengths and not (args.train and args.dev):
        p.error("give TRAIN and DEV, or --lengths")
    return args


# The order of rows: crates/data/src/pack/plan.rs over crates/spec/src/rng.rs.


def finalize(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def epoch_order(n, seed, epoch):
    """Fisher and Yates's shuffle by SplitMix64 keyed with the epoch."""
    split = lambda x: finalize((x + GOLDEN) & MASK)
    state = finalize(((split(seed) + GOLDEN) & MASK) ^ split(epoch))
    order = list(range(n))
    for last in range(n - 1, 0, -1):
        bound = last + 1
        while True:
            state = (state + GOLDEN) & MASK
            product = finalize(state) * bound
            if product & MASK >= (1 << 64) % bound:
                break
        at = product >> 64
        order[last], order[at] = order[at], order[last]
    return order


def steps_of(n, args):
    """Row numbers of every step."""
    per_epoch = -(-n // args.batch_size)
    wanted = args.steps if args.epochs is None else math.ceil(args.epochs * per_epoch)
    steps, epoch = [], 0
    while len(steps) < wanted:
        order = epoch_order(n, args.seed, epoch)
        steps += [order[i : i + args.batch_size] for i in range(0, n, args.batch_size)]
        epoch += 1
    return steps[:wanted]


# Rows as tokens.


def read_rows(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]


def encode(row, tok, args):
    """Ids of a row and a flag for each that is learnt; None where nothing is."""
    if "instruction" in row:
        given = row["instruction"] + ("\n\n" + row["input"] if row.get("input", "").strip() else "")
        row = {"messages": [{"role": "user", "content": given}, {"role": "assistant", "content": row["output"]}]}
    if "messages" in row:
        whole = tok.apply_chat_template(row["messages"], tokenize=False)
        begin = len(tok.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True))
        encoded = tok(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        # What follows the last special token (a line feed) is never generated.
        end = max((i for i, x in enumerate(ids) if x in tok.all_special_ids), default=len(ids) - 1)
        learn = [begin <= start and i <= end for i, (start, _) in enumerate(encoded["offset_mapping"])]
    elif "prompt" in row:
        prompt = tok(row["prompt"])["input_ids"]
        ids = prompt + tok(row["completion"], add_special_tokens=False)["input_ids"] + [tok.eos_token_id]
        learn = [i >= len(prompt) for i in range(len(ids))]
    else:
        ids = tok(row["text"])["input_ids"] + [tok.eos_token_id]
        learn = [True] * len(ids)
    if args.loss_on == "all":
        learn = [True] * len(ids)
    ids, learn = ids[: args.max_length], learn[: args.max_length]
    learn[0] = False
    return (ids, learn) if any(learn) else None


def made_up(tok, args, count):
    """Plain texts of words, of as many tokens as asked for, less the end."""
    draw = random.Random(args.seed)
    words = "the a small boat river king book rain star sea song red cold bright walked read sat over under and not was is of to".split()
    rows = []
    for _ in range(count):
        want = args.max_length if args.lengths == "full" else min(args.max_length, max(8, round(math.exp(draw.gauss(math.log(150), 0.7)))))
        text = " ".join(draw.choice(words) for _ in range(want + 8))
        ids = tok(text)["input_ids"][: want - 1]
        rows.append({"text": tok.decode(ids)})
    return rows


def peer(args):
    """Trains with PyTorch and PEFT; one JSON line."""
    import peft
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    tok = transformers.AutoTokenizer.from_pretrained(args.model)
    rows, dev = ([e for e in (encode(r, tok, args) for r in read_rows(path)) if e] for path in (args.train, args.dev))
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    model.config.use_cache = False
    model = peft.PeftModel.from_pretrained(model, args.peer, is_trainable=True)
    if args.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=args.lr, weight_decay=args.weight_decay)
    steps = steps_of(len(rows), args)
    warm = round(args.warmup_ratio * len(steps))
    make = transformers.get_linear_schedule_with_warmup if args.scheduler == "linear" else transformers.get_constant_schedule_with_warmup
    scheduler = make(optimizer, warm, len(steps)) if args.scheduler == "linear" else make(optimizer, warm)

    def collate(chosen):
        longest = max(len(ids) for ids, _ in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, (row, learn) in enumerate(chosen):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            labels[i, : len(row)] = torch.tensor([x if l else -100 for x, l in zip(row, learn)])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    model.train()
    losses, times, tokens = [], [], 0
    for chosen in steps:
        began = time.perf_counter()
        batch = [rows[i] for i in chosen]
        # The first token is never predicted, so a row's targets are its learnt tokens.
        learnt = sum(sum(learn) for _, learn in batch)
        loss = 0.0
        for at in range(0, len(batch), args.peer_rows or len(batch)):
            part = collate(batch[at : at + (args.peer_rows or len(batch))])
            part_loss = model(**part, num_items_in_batch=torch.tensor(learnt)).loss
            part_loss.backward()
            loss += part_loss.item()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
        losses.append(loss)
        tokens += sum(len(rows[i][0]) for i in chosen)
    model.eval()
    total, weight = 0.0, 0
    with torch.no_grad():
        for row in dev:
            learnt = sum(row[1])
            total, weight = total + model(**collate([row])).loss.item() * learnt, weight + learnt
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    print(json.dumps({
        "losses": losses, "dev_loss": total / weight, "tokens_per_second": tokens / sum(times), "steps": len(steps),
        "ms_per_step_median": 1e3 * statistics.median(times), "versions": versions,
    }))


def first_adapter(args, folder):
    """LoRA on every linear layer as PEFT initializes it, saved for both sides."""
    import peft
    import torch
    import transformers

    torch.manual_seed(args.seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model)
    alpha = int(args.alpha) if args.alpha == int(args.alpha) else args.alpha
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=args.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear")
    peft.get_peft_model(model, config).save_pretrained(folder)


def ours(args, binary, adapter, scratch):
    """Trains with lowrank; its JSON with the loss of every step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Path(tempfile.mkdtemp(dir=scratch)) / "run"
    length = ["--epochs", args.epochs] if args.epochs is not None else ["--max-steps", args.steps]
    command = [binary, "finetune", "--model", args.model, "--train", args.train, "--dev", args.dev, "--method", "lora"]
    command += ["--init-from", adapter, "--rank", args.rank, "--alpha", args.alpha, "--targets", "all-linear", "--dropout", 0]
    command += ["--lr", args.lr, "--batch-size", args.batch_size, *length, "--eval-every", 10**9, "--warmup-ratio", args.warmup_ratio]
    command += ["--scheduler", args.scheduler, "--weight-decay", args.weight_decay, "--max-grad-norm", 1, "--max-length", args.max_length]
    command += ["--loss-on", args.loss_on, "--seed", args.seed, *(["--recompute"] if args.recompute else []), *args.ours_extra.split()]
    result = run_json([*command, "--json", "-o", run], args.threads)
    (file,) = run.rglob("*tfevents*")
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    return result | {"losses": [e.value for e in events.Scalars("train/loss")]}


def main():
    args = options()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.peer:
        return peer(args)
    binary = os.environ.get("LOWRANK") or sys.exit("LOWRANK has to name the lowrank binary; `cargo xtask peers finetune_lm` sets it")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    where = machine()
    with tempfile.TemporaryDirectory() as scratch:
        if args.lengths:
            tok = AutoTokenizer.from_pretrained(args.model)
            rows = made_up(tok, args, args.steps * args.batch_size + 2)
            args.train, args.dev, args.loss_on = Path(scratch) / "train.jsonl", Path(scratch) / "dev.jsonl", "all"
            args.train.write_text("".join(json.dumps(r) + "\n" for r in rows[:-2]), encoding="utf-8")
            args.dev.write_text("".join(json.dumps(r) + "\n" for r in rows[-2:]), encoding="utf-8")
        adapter = Path(scratch) / "first"
        first_adapter(args, adapter)
        passed = [args.model, args.train, args.dev, "--peer", adapter]
        for name in ("batch_size", "max_length", "lr", "warmup_ratio", "scheduler", "weight_decay", "loss_on", "dtype", "seed", "threads"):
            passed += ["--" + name.replace("_", "-"), getattr(args, name)]
        passed += ["--epochs", args.epochs] if args.epochs is not None else ["--steps", args.steps]
        passed += ["--recompute"] if args.recompute else []
        passed += ["--peer-rows", args.peer_rows] if args.peer_rows else []
        got = rounds(args.rounds, {
            "lowrank": lambda: ours(args, binary, adapter, scratch),
            "PyTorch + PEFT": lambda: run_json([sys.executable, "-W", "ignore", __file__, *passed], args.threads),
        })
    mine, theirs = (got[side][0]["losses"] for side in ("lowrank", "PyTorch + PEFT"))
    first = list(zip(mine, theirs))[: args.losses]
    print("| step | lowrank | PyTorch + PEFT | difference |\n|---|---|---|---|")
    for i, (a, b) in enumerate(first):
        print(f"| {i + 1} | {a:.5f} | {b:.5f} | {a - b:+.1e} |")
    print(f"\nlargest difference of the first {len(first)} losses: {max(abs(a - b) for a, b in first):.1e}\n")
    lengths = f"{args.lengths} lengths" if args.lengths else args.train.name
    print(f"LoRA r {args.rank} on every linear layer of {args.model.name}, {lengths}, batch {args.batch_size}, {len(theirs)} steps, "
          f"{'recomputed, ' if args.recompute else ''}{args.rounds} rounds; {where}; {got['PyTorch + PEFT'][0]['versions']}\n")
    print(table(got, [
        ("dev_loss", "dev loss", 4),
        ("ms_per_step_median", "ms per step, median", 0),
        ("tokens_per_second", "real tokens per second", 0),
        ("process_rss_mb", "peak memory, MB", 0),
        ("process_wall_s", "whole process, s", 1),
    ]))
    if args.output:
        args.output.write_text(json.dumps({"machine": where, "results": got}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
