#!/usr/bin/env python3
"""Reads what `lowrank finetune` and `lowrank logs` write with TensorBoard's own reader and with pandas.

    check_logs.py LOWRANK_BINARY

Fine-tunes the embedded model for a few steps. TensorBoard must find in the event file exactly the evaluations that
run.json holds, and the training loss of every logged step; pandas must find in the Parquet file exactly what
TensorBoard finds in the event file, in columns of the documented types.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import pandas
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["model", "method", "task", "lr", "rank", "seed"]
TYPES = ["category", "category", "category", "float64", "int64", "int64", "category", "int64", "float64"]


def run(binary, *args):
    return subprocess.run([binary, *map(str, args)], check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    binary = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        folder, logs, table = (Path(temporary) / name for name in ("run", "logs", "logs.parquet"))
        run(binary, "finetune", "--model", "datasets/models/mini-bert", "--data", "datasets/mini-glue", "--task", "sst2",
            "--method", "lora", "--rank", 2, "--lr", 5e-4, "--seed", 3, "--max-steps", 6, "--eval-every", 3,
            "--batch-size", 8, "-o", folder, "--log-dir", logs, "--json")
        record = json.loads((folder / "run.json").read_text())
        (file,) = logs.rglob("*tfevents*")
        assert file.relative_to(logs).parts[:-1] == ("mini-bert", "lora", "sst2", "5e-4", "2", "3"), file
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        found = [(tag, e.step, e.value) for tag in sorted(events.Tags()["scalars"]) for e in events.Scalars(tag)]

        expect = []
        for evaluation in record["train_info"]["evals"]:
            values = dict(evaluation["metrics"], loss=evaluation["loss"])
            expect += [(f"eval/{name}", evaluation["step"], float(numpy.float32(v))) for name, v in values.items()]
        assert sorted(row for row in found if row[0].startswith("eval/")) == sorted(expect), (found, expect)
        assert {"train/loss", "train/learning_rate", "train/epoch"} <= {tag for tag, _, _ in found}, found

        run(binary, "logs", logs, table, "--names", *NAMES)
        frame = pandas.read_parquet(table)
        assert list(frame.columns) == [*NAMES, "tag", "step", "value"], frame.columns
        assert [str(kind) for kind in frame.dtypes] == TYPES, frame.dtypes
        rows = list(frame[["tag", "step", "value"]].itertuples(index=False, name=None))
        assert rows == found, (rows, found)
        assert frame[NAMES].drop_duplicates().values.tolist() == [["mini-bert", "lora", "sst2", 5e-4, 2, 3]]
        print(f"{len(found)} values of {len(set(row[0] for row in found))} tags are equal")


if __name__ == "__main__":
    main()
