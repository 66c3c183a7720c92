#!/usr/bin/env python3
"""The peer of `lowrank logs`: a log tree made into one Parquet file with tensorboard and pandas.

Writes a tree with TensorBoard's own record writer, converts it both ways, checks that both tables are equal, then
times `lowrank logs` alone on a tree of --full runs (copies of the same files). Prints one JSON line: rows, MB,
seconds and MB/s of both, and how many times faster `lowrank` is.

    LOWRANK=target/release/lowrank python benches/peers/logs.py
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ["model", "method", "task", "lr", "rank", "seed"]
METHODS = ["full", "head", "lora", "lotr", "dora"]
TASKS = ["cola", "mrpc", "rte", "sst2"]
LRS = ["5e-05", "1e-4", "5e-4", "1e-3"]


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=200, help="runs of the tree that both convert")
    p.add_argument("--points", type=int, default=1000, help="values per run")
    p.add_argument("--full", type=int, default=10000, help="runs of the tree that lowrank alone converts")
    p.add_argument("--repeat", type=int, default=3, help="times that lowrank converts each tree; the median counts")
    return p.parse_args()


def folder(root, run):
    """A folder per run, as deep as there are names."""
    return (
        root / "mini-bert" / METHODS[run % 5] / TASKS[run // 5 % 4] / LRS[run // 20 % 4]
        / str(2 ** (run // 80 % 4)) / str(run // 320)
    )


def write_run(path, run, points):
    """Three tags in turn: two as TensorFlow 1 and PyTorch write them, one as TensorFlow 2 does."""
    from tensorboard.compat.proto import event_pb2, tensor_pb2
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.summary.writer.record_writer import RecordWriter

    scalars = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    path.mkdir(parents=True)
    with open(path / f"events.out.tfevents.{1700000000 + run}.host.1.0", "wb") as file:
        writer = RecordWriter(file)
        writer.write(event_pb2.Event(wall_time=1.7e9, file_version="brain.Event:2").SerializeToString())
        for point in range(points):
            value = (run + 1) ** 0.5 / (1 + point)
            tag = ("train/loss", "train/learning_rate", "eval/accuracy")[point % 3]
            if point % 3 < 2:
                entry = Summary.Value(tag=tag, simple_value=value)
            else:
                tensor = tensor_pb2.TensorProto(dtype=1, float_val=[value])
                entry = Summary.Value(tag=tag, tensor=tensor, metadata=scalars)
            event = event_pb2.Event(wall_time=1.7e9 + point, step=point // 3 * 10, summary=Summary(value=[entry]))
            writer.write(event.SerializeToString())


def python_way(root, output):
    """What one writes by hand: an EventAccumulator per run, pandas, Parquet."""
    import pandas
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    frames = []
    for path, _, files in os.walk(root):
        if not any("tfevents" in name for name in files):
            continue
        accumulator = EventAccumulator(path, size_guidance={"scalars": 0, "tensors": 0}).Reload()
        tags = accumulator.Tags()
        rows = [(tag, e.step, e.value) for tag in tags["scalars"] for e in accumulator.Scalars(tag)]
        for tag in tags["tensors"]:
            rows += [(tag, e.step, tensor_util.make_ndarray(e.tensor_proto).item()) for e in accumulator.Tensors(tag)]
        frame = pandas.DataFrame(rows, columns=["tag", "step", "value"])
        for name, segment in zip(NAMES, Path(path).relative_to(root).parts):
            frame[name] = segment
        frames.append(frame)
    table = pandas.concat(frames, ignore_index=True)
    table = table.astype({"lr": float, "rank": int, "seed": int})
    table = table[NAMES + ["tag", "step", "value"]].sort_values(NAMES + ["tag", "step"], kind="stable")
    text = ["model", "method", "task", "tag"]
    table = table.astype({name: "category" for name in text}).reset_index(drop=True)
    table.to_parquet(output, compression="zstd")
    return table


def lowrank_way(root, output, repeat):
    """The median of the wall times, and the peak memory of the processes in MB (None where there is no /proc)."""
    command = [os.environ["LOWRANK"], "logs", str(root), str(output), "--names", *NAMES]
    seconds, peak = [], None
    for _ in range(repeat):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            # Not getrusage: a child's figure there begins with what its parent held when it was forked.
            peak = max(filter(None, (peak, peak_rss_mb(process.pid))), default=None)
            time.sleep(0.005)
        seconds.append(time.perf_counter() - started)
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, command)
    return statistics.median(seconds), peak


def peak_rss_mb(pid):
    """A process's VmHWM, once it runs the program that it was started for."""
    try:
        if Path(f"/proc/{pid}/exe").resolve() == Path("/proc/self/exe").resolve():
            return None
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)


def megabytes(root):
    return sum(path.stat().st_size for path in root.rglob("*tfevents*")) / 1e6


def main():
    args = options()
    import pandas

    with tempfile.TemporaryDirectory() as temporary:
        small, full = Path(temporary) / "small", Path(temporary) / "full"
        for run in range(args.runs):
            write_run(folder(small, run), run, args.points)

        started = time.perf_counter()
        theirs = python_way(small, Path(temporary) / "python.parquet")
        python_seconds = time.perf_counter() - started
        output = Path(temporary) / "lowrank.parquet"
        seconds, _ = lowrank_way(small, output, args.repeat)
        ours = pandas.read_parquet(output)
        pandas.testing.assert_frame_equal(ours, theirs, check_categorical=False, check_dtype=False, rtol=0, atol=0)
        kinds = {name: str(kind) for name, kind in ours.dtypes.items()}
        expect = {"model": "category", "method": "category", "task": "category", "lr": "float64", "rank": "int64"}
        expect |= {"seed": "int64", "tag": "category", "step": "int64", "value": "float64"}
        assert kinds == expect, kinds

        for run in range(args.full):
            source = next(folder(small, run % args.runs).iterdir())
            target = folder(full, run)
            target.mkdir(parents=True)
            shutil.copy(source, target / source.name)
        full_seconds, peak = lowrank_way(full, output, args.repeat)
        mb, full_mb = megabytes(small), megabytes(full)
        result = {
            "runs": args.runs,
            "rows": len(ours),
            "mb": round(mb, 1),
            "python_seconds": round(python_seconds, 2),
            "lowrank_seconds": round(seconds, 3),
            "times_faster": round(python_seconds / seconds, 1),
            "equal": True,
            "full_runs": args.full,
            "full_mb": round(full_mb, 1),
            "full_seconds": round(full_seconds, 2),
            "full_mb_per_second": round(full_mb / full_seconds, 1),
            "full_peak_rss_mb": peak and round(peak, 1),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
