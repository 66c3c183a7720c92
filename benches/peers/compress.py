"""Compression of a Llama-shaped checkpoint by plain SVD: `lowrank compress` beside torch.svd_lowrank, layer by layer.

    LOWRANK=target/release/lowrank python benches/peers/compress.py WORK_DIR [--gigabytes 3] [--ratio 0.2] [--only lowrank|torch]

Both read one file of random weights, made on the spot, and write one of factors. Prints seconds, peak memory and the
relative error over all weights touched.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

HIDDEN, INTER, VOCAB = 2048, 5504, 32000


def shapes(layers):
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for i in range(layers):
        p = f"model.layers.{i}."
        for name in "qkvo":
            yield f"{p}self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        yield f"{p}mlp.gate_proj.weight", (INTER, HIDDEN)
        yield f"{p}mlp.up_proj.weight", (INTER, HIDDEN)
        yield f"{p}mlp.down_proj.weight", (HIDDEN, INTER)
        yield f"{p}input_layernorm.weight", (HIDDEN,)
        yield f"{p}post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def numel(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def make(folder, gigabytes):
    """Writes the checkpoint a tensor at a time."""
    import numpy as np

    each = sum(numel(s) for n, s in shapes(1) if ".layers." in n)
    other = sum(numel(s) for n, s in shapes(0))
    layers = max(1, round((gigabytes * 1e9 / 4 - other) / each))
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "hidden_act": "silu",
        "intermediate_size": INTER, "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16,
        "vocab_size": VOCAB, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header, start = {}, 0
    for name, shape in shapes(layers):
        end = start + 4 * numel(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in shapes(layers):
            file.write((random.standard_normal(numel(shape), dtype=np.float32) * 0.02).tobytes())


def is_touched(name):
    return "_proj.weight" in name


def run_torch(model, output, ratio):
    """svd_lowrank layer by layer; a child process, so that its peak memory is its own."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    start, out = time.perf_counter(), {}
    with safe_open(model / "model.safetensors", "pt") as file:
        for name in file.keys():
            w = file.get_tensor(name)
            if not is_touched(name):
                out[name] = w
                continue
            m, n = w.shape
            k = int(m * n * (1 - ratio) / (m + n))
            u, s, v = torch.svd_lowrank(w, q=k, niter=4)
            root = s.sqrt()
            path = name.removesuffix(".weight")
            out[f"{path}.lowrank_b.weight"] = (u * root).contiguous()
            out[f"{path}.lowrank_a.weight"] = (v * root).T.contiguous()
    output.mkdir(exist_ok=True)
    save_file(out, output / "model.safetensors")
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}))


def error(model, output):
    import torch
    from safetensors import safe_open

    missed = total = 0.0
    with safe_open(model / "model.safetensors", "pt") as dense, safe_open(output / "model.safetensors", "pt") as file:
        for name in filter(is_touched, dense.keys()):
            w, path = dense.get_tensor(name), name.removesuffix(".weight")
            a, b = (file.get_tensor(f"{path}.lowrank_{x}.weight") for x in "ab")
            missed += (w - b @ a).double().square().sum().item()
            total += w.double().square().sum().item()
    return (missed / total) ** 0.5


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--only", choices=["lowrank", "torch"])
    parser.add_argument("--child", action="store_true")
    args = parser.parse_args()
    model = args.work / "dense"
    if args.child:
        return run_torch(model, args.work / "torch", args.ratio)
    if not (model / "config.json").exists():
        make(model, args.gigabytes)
    if args.only != "torch":
        ours = args.work / "lowrank"
        command = [os.environ["LOWRANK"], "compress", "--model", model, "--method", "svd", "--ratio", str(args.ratio),
                   "--allocation", "uniform", "-o", ours, "--json"]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"lowrank: {result['wall_s']:.1f} s, {result['peak_rss_mb']:.0f} MB, error {error(model, ours):.5f}")
    if args.only != "lowrank":
        command = [sys.executable, __file__, args.work, "--ratio", str(args.ratio), "--child"]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"torch:   {result['seconds']:.1f} s, {result['peak_mb']:.0f} MB, error {error(model, args.work / 'torch'):.5f}")


if __name__ == "__main__":
    main()
