"""Times lowrank-factor beside numpy, PyTorch and scikit-learn, and prints one Markdown table.

    python benches/peers/factor.py [--rounds 3] [--threads N] [--quick] [--binary PATH]

Needs numpy, torch and scikit-learn (tests/peers/setup.sh makes an environment). Builds the example
`peer_case` of the crate in release mode and runs each case in rounds, ours and the peers in turn, so that a
busy machine troubles all of them alike. A time is the median over all repetitions of all rounds; a ratio is
ours / peer, below 1 where we are faster. Errors are relative Frobenius errors, medians over seeds.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import tempfile
import time

def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads for everyone")
    parser.add_argument("--quick", action="store_true", help="smallest shapes only")
    parser.add_argument("--skip", nargs="*", default=[], choices=["exact", "randomized", "tt"], help="leave cases out")
    parser.add_argument("--binary", help="an existing build of the example peer_case")
    return parser.parse_args()


OPTIONS = parse()
# The libraries read these when they are loaded.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)

import numpy as np  # noqa: E402
import sklearn  # noqa: E402
import torch  # noqa: E402
from sklearn.utils.extmath import randomized_svd  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
OVERSAMPLING, POWER_ITERATIONS = 10, 4


def build():
    """Path of the release build of the example."""
    command = ["cargo", "build", "--release", "-p", "lowrank-factor", "--example", "peer_case"]
    subprocess.run(command, cwd=ROOT, check=True)
    metadata = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT, check=True, capture_output=True
    )
    target = pathlib.Path(json.loads(metadata.stdout)["target_directory"])
    return target / "release" / "examples" / "peer_case"


def ours(binary, *args):
    done = subprocess.run([str(binary), *map(str, args)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def timed(repetitions, run):
    """Seconds of each repetition and the last result, after one run to warm up."""
    run(0)
    seconds = []
    for seed in range(1, repetitions + 1):
        start = time.perf_counter()
        result = run(seed)
        seconds.append(time.perf_counter() - start)
    return seconds, result


def relative_error(a, u, s, vt):
    a = a.astype(np.float64)
    return float(np.linalg.norm(a - (u.astype(np.float64) * s) @ vt) / np.linalg.norm(a))


def gaussian(rows, cols):
    return np.random.default_rng(0).standard_normal((rows, cols), dtype=np.float32)


def power_law(rows, cols):
    """Singular values 1/sqrt(k), as trained weights roughly have."""
    rng = np.random.default_rng(1)
    k = min(rows, cols)
    u = np.linalg.qr(rng.standard_normal((rows, k)))[0]
    v = np.linalg.qr(rng.standard_normal((cols, k)))[0]
    return ((u / np.sqrt(np.arange(1, k + 1))) @ v.T).astype(np.float32)


class Table:
    def __init__(self):
        self.rows = []

    def add(self, case, us, peers, errors=None):
        cells = [case, f"{us * 1e3:.2f}"]
        for name in ("numpy", "torch", "sklearn"):
            seconds = peers.get(name)
            cells.append("–" if seconds is None else f"{seconds * 1e3:.2f} ({us / seconds:.2f})")
        cells.append("–" if errors is None else " / ".join(f"{error:.5f}" for error in errors))
        self.rows.append(cells)
        print("| " + " | ".join(cells) + " |", flush=True)

    @staticmethod
    def header():
        print("| case | ours, ms | numpy, ms (ratio) | torch, ms (ratio) | sklearn, ms (ratio) | error ours / torch / best |")
        print("|---|---|---|---|---|---|")


def exact(table, binary, folder, shape, rounds, repetitions):
    a = gaussian(*shape)
    path = folder / "exact.f32"
    a.tofile(path)
    tensor = torch.from_numpy(a)
    seconds = {"ours": [], "numpy": [], "torch": []}
    for _ in range(rounds):
        seconds["ours"] += ours(binary, "exact", *shape, min(shape), repetitions, path)["seconds"]
        seconds["torch"] += timed(repetitions, lambda _: torch.linalg.svd(tensor, full_matrices=False))[0]
        seconds["numpy"] += timed(repetitions, lambda _: np.linalg.svd(a, full_matrices=False))[0]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    table.add(f"exact SVD {shape[0]}×{shape[1]}", median.pop("ours"), median)


def randomized(table, binary, folder, kind, shape, rounds, repetitions):
    a = kind(*shape)
    path = folder / "randomized.f32"
    a.tofile(path)
    tensor = torch.from_numpy(a)
    rank = min(shape) // 4
    width = rank + OVERSAMPLING
    best = np.linalg.svd(a, compute_uv=False).astype(np.float64)
    best = float(np.sqrt((best[rank:] ** 2).sum() / (best**2).sum()))

    def with_torch(seed):
        torch.manual_seed(seed)
        return torch.svd_lowrank(tensor, q=width, niter=POWER_ITERATIONS)

    def with_sklearn(seed):
        return randomized_svd(
            a, rank, n_oversamples=OVERSAMPLING, n_iter=POWER_ITERATIONS, power_iteration_normalizer="QR", random_state=seed
        )

    seconds = {"ours": [], "torch": [], "sklearn": []}
    errors = {"ours": [], "torch": []}
    for number in range(rounds):
        got = ours(binary, "randomized", *shape, rank, repetitions, path)
        seconds["ours"] += got["seconds"]
        errors["ours"] += got["errors"]
        seconds["torch"] += timed(repetitions, with_torch)[0]
        for seed in range(repetitions):
            u, s, v = with_torch(1000 * number + seed)
            errors["torch"].append(relative_error(a, u[:, :rank].numpy(), s[:rank].numpy(), v[:, :rank].numpy().T))
        seconds["sklearn"] += timed(repetitions, with_sklearn)[0]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    shown = [statistics.median(errors["ours"]), statistics.median(errors["torch"]), best]
    label = f"randomized SVD {kind.__name__} {shape[0]}×{shape[1]}, r = {rank}, q = {POWER_ITERATIONS}"
    table.add(label, median.pop("ours"), median, shown)


def tensor_train(table, binary, shape, rank, rounds, repetitions):
    x, dense = torch.randn(32, shape[0]), torch.randn(*shape)
    thin, full, peer = [], [], []
    for _ in range(rounds):
        got = ours(binary, "tt", *shape, rank, repetitions)
        thin += got["seconds"]
        full += got["dense_seconds"]
        peer += timed(repetitions, lambda _: x @ dense)[0]
    share = got["multiply_adds"] / got["dense_multiply_adds"]
    us, dense_us = statistics.median(thin), statistics.median(full)
    label = f"TT product {shape[0]}×{shape[1]}, ranks {rank}, batch 32 ({share:.2f} of the multiply-adds)"
    table.add(f"{label}; our dense product {dense_us * 1e3:.3f} ms, ratio {us / dense_us:.2f}", us, {"torch": statistics.median(peer)})


def main():
    binary = OPTIONS.binary or build()
    rounds = OPTIONS.rounds
    torch.set_num_threads(OPTIONS.threads)
    shapes = [(768, 768), (3072, 768)] + ([] if OPTIONS.quick else [(2048, 2048)])
    print(
        f"{platform.machine()}, {OPTIONS.threads} threads, load {os.getloadavg()[0]:.1f}; "
        f"numpy {np.__version__}, torch {torch.__version__}, scikit-learn {sklearn.__version__}; "
        f"f32, {rounds} rounds, medians; ratio = ours / peer; torch column of a TT product: its dense product\n"
    )
    table = Table()
    table.header()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for shape in shapes if "exact" not in OPTIONS.skip else []:
            exact(table, binary, folder, shape, rounds, 1 if min(shape) > 1000 else 3)
        for kind in (gaussian, power_law) if "randomized" not in OPTIONS.skip else []:
            for shape in shapes:
                randomized(table, binary, folder, kind, shape, rounds, 3 if min(shape) > 1000 else 7)
        for shape in [(768, 768), (768, 3072), (4096, 4096)] if "tt" not in OPTIONS.skip else []:
            for rank in (2, 4, 8, 16):
                tensor_train(table, binary, shape, rank, rounds, 50)


if __name__ == "__main__":
    main()
