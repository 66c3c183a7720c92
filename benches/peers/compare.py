#!/usr/bin/env python3
"""Runs lowrank and its peers (PyTorch, candle) in turns and prints a Markdown table: medians, range, ratios.

All sides are processes that print one JSON line; peak memory and wall time are measured from outside, the same way
for all. The order within a round alternates, so that a slow minute of the machine does not fall on one side only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run_json(command, threads):
    """Runs a command; its last JSON line with process_wall_s and process_rss_mb added."""
    env = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        child = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err, env=env)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text, problem = out.read().decode(), err.read().decode(errors="replace")
    if child.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexited with {child.returncode}:\n{problem[-2000:]}")
    result = next((json.loads(x) for x in reversed(text.splitlines()) if x.startswith("{")), None)
    if result is None:
        result = json.loads(text)
    scale = 1024 if sys.platform.startswith("linux") else 1024 * 1024
    return result | {"process_wall_s": wall, "process_rss_mb": usage.ru_maxrss / scale}


def rounds(count, sides):
    """`count` results of each of the sides, taking turns, the order alternating."""
    got = {name: [] for name in sides}
    for i in range(count):
        for name in list(sides) if i % 2 == 0 else reversed(sides):
            got[name].append(sides[name]())
            print(f"round {i + 1}/{count} {name}: {brief(got[name][-1])}", file=sys.stderr)
    return got


def brief(result):
    return {k: round(v, 4) for k, v in result.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def table(got, lines):
    """Markdown: for each (key, label, digits) the medians with their range, and lowrank's ratio to each peer's."""

    def side(values, digits):
        low, mid, high = min(values), statistics.median(values), max(values)
        return f"{mid:.{digits}f}" + (f" ({low:.{digits}f}–{high:.{digits}f})" if len(values) > 1 else "")

    peers = list(got)[1:]
    rows = ["| | lowrank |" + "".join(f" {name} | ratio of medians | median of paired ratios |" for name in peers)]
    rows.append("|---|---|" + "---|---|---|" * len(peers))
    for key, label, digits in lines:
        values = {name: [result.get(key) for result in results] for name, results in got.items()}
        if any(value is None for value in values["lowrank"]):
            continue
        row = f"| {label} | {side(values['lowrank'], digits)} |"
        for name in peers:
            theirs = values[name]
            if any(not value for value in theirs):
                row += " – | – | – |"
                continue
            ratio = statistics.median(values["lowrank"]) / statistics.median(theirs)
            paired = statistics.median(o / p for o, p in zip(values["lowrank"], theirs))
            row += f" {side(theirs, digits)} | {ratio:.3f} | {paired:.3f} |"
        rows.append(row)
    return "\n".join(rows)


def machine():
    """Processor, cores and load: what a reader needs to judge the numbers."""
    model = platform.processor() or platform.machine()
    try:
        cpu = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":", 1)[1].strip() for x in cpu if x.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}"


def finetune(args):
    lr = args.lr if args.lr is not None else 5e-5 if args.method == "full" else 5e-4
    targets = "all-linear" if args.all_linear else "query,value"
    lora = ["--rank", 8, "--alpha", 16, "--targets", targets] if args.method == "lora" else []
    seeds = {name: iter(range(args.seed, args.seed + args.rounds)) for name in ("ours", "peer")}

    def ours():
        with tempfile.TemporaryDirectory() as out:
            command = [args.binary, "finetune", "--model", args.model, "--task", "sst2", "--data", args.data]
            command += ["--method", args.method, *lora, "--lr", lr, "--batch-size", 32, "--max-steps", args.steps]
            command += ["--warmup-ratio", 0.06, "--scheduler", "linear", "--seed", next(seeds["ours"])]
            return run_json([*command, *args.ours_extra.split(), "--json", "-o", Path(out) / "run"], args.threads)

    def peer():
        command = [sys.executable, "-W", "ignore", HERE / "finetune.py", "--model", args.model, "--data", args.data]
        command += ["--method", args.method, "--lr", lr, "--steps", args.steps, "--seed", next(seeds["peer"])]
        command += ["--threads", args.threads, "--eval" if args.eval else "--no-eval"]
        return run_json(command + (["--all-linear"] if args.all_linear else []), args.threads)

    where = machine()
    got = rounds(args.rounds, {"lowrank": ours, "PyTorch + PEFT": peer})
    print(f"Fine-tuning, {args.method}{' on all linears' if args.all_linear else ''}, SST-2, batch 32, {args.steps} steps, "
          f"{args.rounds} rounds; {where}; {got['PyTorch + PEFT'][0]['versions']}\n")
    print(table(got, [
        ("ms_per_step_median", "ms per step, median", 1),
        ("tokens_per_second", "real tokens per second", 0),
        ("process_rss_mb", "peak memory, MB", 0),
        ("metric", "dev accuracy", 4),
        ("process_wall_s", "whole process, s", 2),
        ("trainable", "trainable parameters", 0),
    ]))


def inference(args):
    work = Path(args.work) / args.shape
    script = [sys.executable, "-W", "ignore", HERE / "inference.py"]
    if not (work / f"full-{args.batches}.txt").exists():
        print(run_json([*script, "make", "--shape", args.shape, "--out", work, "--batches", args.batches], args.threads), file=sys.stderr)
    if args.shape in ("llama-160m", "qwen3-0.6b"):
        decode(args, work, script)
    else:
        encode(args, work, script)


def encode(args, work, script):
    """Real tokens per second as each side reports them, tokenization counted and loading not."""
    files = [work / f"{args.lengths}-{n}.txt" for n in (1, args.batches)]

    def timed(command):
        first, many = (run_json([*command, "--file", f], args.threads) for f in files)
        return many | {"first_batch_s": first["process_wall_s"]}

    base = ["--model", work, "--batch-size", 32]
    where = machine()
    sides = {
        "lowrank": lambda: timed([args.binary, "embed", *base, *args.ours_extra.split(), "--json"]),
        "PyTorch": lambda: timed([*script, "embed", *base, "--rows", "--threads", args.threads]),
    }
    if args.candle:
        sides["candle"] = lambda: timed([args.candle, "embed", *base])
    got = rounds(args.rounds, sides)
    print(f"Encoder forward, {args.shape} shape, batch 32, {args.lengths} lengths, {args.rounds} rounds; {where}\n")
    print(table(got, [
        ("tokens_per_second", "real tokens per second", 0),
        ("first_batch_s", "process with one batch, s", 2),
        ("process_rss_mb", "peak memory, MB", 0),
    ]))


def decode(args, work, script):
    """Speeds of reading the prompt and of the tokens after it, from the time that each side reports for one new token
    and for many, and the wall time of a process that makes one token."""
    prompt = " ".join(f"w{i}" for i in range(1, args.prompt_tokens))  # and the token of its beginning

    def timed(command):
        first = run_json([*command, "--max-new-tokens", 1], args.threads)
        many = run_json([*command, "--max-new-tokens", args.tokens + 1], args.threads)
        prefill_s, all_s = 1 / first["tokens_per_second"], (args.tokens + 1) / many["tokens_per_second"]
        return many | {
            "prompt_tokens_per_second": args.prompt_tokens / prefill_s,
            "new_tokens_per_second": args.tokens / (all_s - prefill_s),
            "first_token_s": first["process_wall_s"],
        }

    base = ["--model", work, "--prompt", prompt]
    where = machine()
    ours = ["generate", *base, "--temperature", 0, "--ignore-eos", *args.ours_extra.split(), "--json"]
    sides = {
        "lowrank": lambda: timed([args.binary, *ours]),
        "PyTorch": lambda: timed([*script, "generate", *base, "--threads", args.threads]),
    }
    if args.candle:
        sides["candle"] = lambda: timed([args.candle, "generate", *base])
    got = rounds(args.rounds, sides)
    same = all(result["ids"] == got["lowrank"][0]["ids"] for results in got.values() for result in results)
    print(f"Greedy decoding, {args.shape} shape, prompt of {args.prompt_tokens} tokens, {args.tokens} tokens after the first "
          f"({'the same on all sides' if same else 'NOT the same on all sides'}), {args.rounds} rounds; {where}\n")
    print(table(got, [
        ("prompt_tokens_per_second", "tokens of the prompt per second", 1),
        ("new_tokens_per_second", "new tokens per second", 1),
        ("first_token_s", "start to first token, s", 3),
        ("process_rss_mb", "peak memory, MB", 0),
    ]))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="what", required=True)
    for name in ("finetune", "inference"):
        s = sub.add_parser(name)
        s.add_argument("--binary", required=True, help="the lowrank executable")
        s.add_argument("--rounds", type=int, default=3)
        s.add_argument("--threads", type=int, default=2)
        s.add_argument("--ours-extra", default="", help="further options for lowrank, separated by spaces")
        if name == "finetune":
            s.add_argument("--model", required=True)
            s.add_argument("--data", required=True)
            s.add_argument("--steps", type=int, default=100)
            s.add_argument("--method", choices=["lora", "full", "head"], default="lora")
            s.add_argument("--all-linear", action="store_true")
            s.add_argument("--lr", type=float, help="default 5e-4, for full 5e-5")
            s.add_argument("--eval", action=argparse.BooleanOptionalAction, default=True, help="the peer's dev accuracy")
            s.add_argument("--seed", type=int, default=0)
        else:
            s.add_argument("--work", required=True, help="where the random models are kept")
            s.add_argument("--candle", help="the executable of benches/peers/candle")
            s.add_argument("--shape", default="minilm",
                           choices=["minilm", "bert-base", "modernbert-base", "llama-160m", "qwen3-0.6b"])
            s.add_argument("--lengths", choices=["mixed", "full"], default="mixed")
            s.add_argument("--batches", type=int, default=9)
            s.add_argument("--prompt-tokens", type=int, default=17)
            s.add_argument("--tokens", type=int, default=64)
    args = p.parse_args()
    {"finetune": finetune, "inference": inference}[args.what](args)


if __name__ == "__main__":
    main()
