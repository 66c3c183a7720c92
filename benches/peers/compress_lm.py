#!/usr/bin/env python3
"""`lowrank compress` of a Llama-like language model beside published methods, each written here from its paper.

    compress_lm.py MODEL CALIBRATION TEXT [options]      LOWRANK names the binary; `cargo xtask peers compress_lm …` sets it

CALIBRATION is JSON lines with `text`, of which the first --rows are drawn from, and whose last --held-out rows are a second
text for evaluation; TEXT is read up to --bytes bytes in windows of 1,024 tokens, each after the first counting its last 512.
All methods see the same lines of at most 512 tokens, keep the same part of the parameters of the linear maps inside the
layers, and are evaluated as dense weights by PyTorch; lowrank's folder is evaluated by lowrank, and both sides' dense
perplexities are printed.

- svd: truncated SVD, uniform ranks.
- asvd: inputs scaled by mean|x|^0.5 (Yuan et al. 2023, arXiv:2312.05821), uniform ranks; with --asvd-search the ratios that the
  paper's search finds from the perplexity of one calibration line under each ratio of each map.
- svd-llm: whitened by the Cholesky factor of the inputs' Gram matrix, uniform ranks (Wang et al. 2024, arXiv:2403.07378, W).
- basis-sharing: the same with one basis for two neighbouring layers where maps read the hidden state (Wang et al. 2025,
  arXiv:2410.03765).
- modegpt: Nyström on the feed-forward part, CR on queries and keys, SVD on values and outputs, ratios of layers by block
  influence (Lin et al. 2024, arXiv:2408.09632). Rotary pairs are kept whole, and key heads select for their queries.
- kfac-svd: whitened by the Gram matrices of inputs and of the gradients of outputs, 1 % shrinkage, ranks by the tails over all
  layers, maps that do not pay left dense (as K-FAC's metric: Martens & Grosse 2015, arXiv:1503.05671).
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS = ["svd", "asvd", "svd-llm", "basis-sharing", "modegpt", "kfac-svd"]


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("calibration", type=Path)
    p.add_argument("text", type=Path)
    p.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    p.add_argument("--ours", nargs="*", default=["two-sided"], help="methods of lowrank, with further options after a comma")
    p.add_argument("--ratios", nargs="*", type=float, default=[0.2, 0.4, 0.6])
    p.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    p.add_argument("--samples", type=int, default=96)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--rows", type=int, default=240)
    p.add_argument("--held-out", type=int, default=50)
    p.add_argument("--bytes", type=int, default=40_000)
    p.add_argument("--asvd-search", action="store_true")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--output", type=Path, help="file for all results as JSON")
    return p.parse_args()


class Model:
    """The dense model, its linear maps by layer, and its evaluation."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.layers = self.lm.model.layers
        self.config = self.lm.config
        self.maps = [{name: dict(layer.named_modules())[path] for name, path in paths(layer).items()} for layer in self.layers]
        self.dense = [{name: m.weight.detach().clone() for name, m in layer.items()} for layer in self.maps]
        self.numel = sum(w.numel() for layer in self.dense for w in layer.values())

    def restore(self):
        self.set(self.dense)

    def set(self, weights):
        with torch.no_grad():
            for maps, layer in zip(self.maps, weights):
                for name, weight in layer.items():
                    maps[name].weight.copy_(weight)

    def ids(self, text, limit=None):
        ids = self.tokenizer(text)["input_ids"]
        return torch.tensor(ids[:limit])

    @torch.no_grad()
    def windows(self, ids, length=1024, stride=512):
        """Perplexity of a long text in sliding windows."""
        total, count, end = 0.0, 0, 0
        for begin in range(0, len(ids), stride):
            stop = min(begin + length, len(ids))
            logits = self.lm(ids[None, begin:stop]).logits[0, :-1]
            nll = cross_entropy(logits, ids[begin + 1 : stop], reduction="none")
            new = nll[-(stop - max(end, begin + 1)) :]
            total, count, end = total + new.double().sum().item(), count + len(new), stop
            if stop == len(ids):
                break
        return math.exp(total / count)

    @torch.no_grad()
    def rows(self, rows):
        total, count = 0.0, 0
        for ids in rows:
            if len(ids) > 1:
                total += cross_entropy(self.lm(ids[None]).logits[0, :-1], ids[1:], reduction="sum").item()
                count += len(ids) - 1
        return math.exp(total / count)


def paths(layer):
    return {name.rsplit(".", 1)[-1]: name for name, m in layer.named_modules() if name.rsplit(".", 1)[-1] in MAPS}


def statistics(model, samples):
    """Per layer: Gram matrices of the inputs and of the gradients of the outputs (of the sum of the losses), mean magnitudes,
    Gram matrices of rotated queries and keys by head, and the influence of the block (1 − cosine of its input and output)."""
    n = len(model.layers)
    found = [{"in": {}, "out": {}, "abs": {}, "influence": 0.0} for _ in range(n)]
    tokens = sum(len(s) for s in samples)
    hooks = []

    def add(table, key, x):
        gram = (x.T @ x).double()
        table[key] = table[key] + gram if key in table else gram

    def watch(layer, name, module):
        def forward(_, inputs, output):
            x = inputs[0].detach()[0]
            if name in ("q_proj", "o_proj", "gate_proj", "down_proj"):
                add(found[layer]["in"], name, x)
                found[layer]["abs"][name] = found[layer]["abs"].get(name, 0.0) + x.abs().double().sum(0) / tokens
            if name in ("q_proj", "k_proj"):
                heads = output.detach()[0].reshape(len(x), -1, model.config.hidden_size // model.config.num_attention_heads)
                # A rotation mixes the two halves of a pair and changes no sum of their squares.
                energy = heads.double().square().sum(0)
                found[layer][name] = found[layer].get(name, 0.0) + energy
            output.register_hook(lambda grad: add(found[layer]["out"], name, grad[0]))

        hooks.append(module.register_forward_hook(forward))

    def block(layer, module):
        def forward(_, inputs, output):
            x, y = inputs[0].detach()[0], (output[0] if isinstance(output, tuple) else output).detach()
            y = y[0] if y.dim() == 3 else y
            cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1)
            found[layer]["influence"] += (1 - cosine).double().sum().item() / tokens

        hooks.append(module.register_forward_hook(forward))

    for i, layer in enumerate(model.maps):
        for name, module in layer.items():
            watch(i, name, module)
        block(i, model.layers[i])
    model.lm.requires_grad_(False)
    embedding = model.lm.get_input_embeddings()
    for ids in samples:
        states = embedding(ids[None]).requires_grad_()
        logits = model.lm(inputs_embeds=states).logits[0, :-1]
        cross_entropy(logits, ids[1:], reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    for layer in found:
        for table in (layer["in"], layer["abs"]):
            table["k_proj"] = table["v_proj"] = table["q_proj"]
            table["up_proj"] = table["gate_proj"]
    return found


def rank_of(weight, ratio):
    out, inner = weight.shape
    return max(1, int((1 - ratio) * out * inner / (out + inner)))


def cholesky(gram):
    """The lower factor, with as much of the mean of the diagonal as it takes."""
    mean, share = gram.diagonal().mean(), 1e-9
    while True:
        factor, info = torch.linalg.cholesky_ex(gram + share * mean * torch.eye(len(gram), dtype=gram.dtype))
        if info == 0:
            return factor
        share *= 10


def truncated(weight, rank, scale=None, unscale=None):
    scaled = weight.double() if scale is None else weight.double() @ scale
    u, s, v = torch.linalg.svd(scaled, full_matrices=False)
    low = (u[:, :rank] * s[:rank]) @ v[:rank]
    return (low if unscale is None else unscale(low)).float()


def svd(model, stats, ratio, args, samples):
    return [{name: truncated(w, rank_of(w, ratio)) for name, w in layer.items()} for layer in model.dense]


def asvd_weight(weight, magnitude, rank):
    scale = magnitude.clamp(min=1e-6).sqrt()
    u, s, v = torch.linalg.svd(weight.double() * scale, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank] / scale).float()


def asvd(model, stats, ratio, args, samples):
    ratios = asvd_ratios(model, stats, ratio, samples) if args.asvd_search else None
    result = []
    for i, layer in enumerate(model.dense):
        new = {}
        for name, w in layer.items():
            own = ratios[i, name] if ratios else ratio
            new[name] = w if own == 0 else asvd_weight(w, stats[i]["abs"][name], rank_of(w, own))
        result.append(new)
    return result


def asvd_ratios(model, stats, ratio, samples):
    """The paper's sensitivity-based search: the largest steps whose perplexity alone stays under one bound for all maps."""
    steps, found = [0.1, 0.3, 0.5, 0.7, 0.9], {}
    for i, layer in enumerate(model.dense):
        for name, w in layer.items():
            for step in steps:
                with torch.no_grad():
                    model.maps[i][name].weight.copy_(asvd_weight(w, stats[i]["abs"][name], rank_of(w, step)))
                found[i, name, step] = model.rows(samples[:1])
            with torch.no_grad():
                model.maps[i][name].weight.copy_(w)
    bounds = sorted(set(found.values()))

    def chosen(bound):
        keys = {(i, name): [s for s in steps if found[i, name, s] <= bound] for i, layer in enumerate(model.dense) for name in layer}
        return {key: max(allowed, default=0) for key, allowed in keys.items()}

    def removed(ratios):
        return sum(r * model.dense[i][name].numel() for (i, name), r in ratios.items()) / model.numel

    low, high = 0, len(bounds) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if removed(chosen(bounds[middle])) >= ratio else (middle + 1, high)
    return chosen(bounds[low])


def svd_llm(model, stats, ratio, args, samples):
    result = []
    for i, layer in enumerate(model.dense):
        new = {}
        for name, w in layer.items():
            factor = cholesky(stats[i]["in"][name])
            new[name] = truncated(w, rank_of(w, ratio), factor, lambda low: unwhiten(low, factor))
        result.append(new)
    return result


def unwhiten(low, factor):
    """`low · factor⁻¹`."""
    return torch.linalg.solve_triangular(factor.T, low.T, upper=True).T


def basis_sharing(model, stats, ratio, args, samples):
    result = [{} for _ in model.dense]
    for first in range(0, len(model.dense), 2):
        group = [i for i in (first, first + 1) if i < len(model.dense)]
        for name in MAPS:
            weights = [model.dense[i][name] for i in group]
            # The paper shares neither outputs nor the second feed-forward map.
            shared = [group] if name not in ("o_proj", "down_proj") else [[i] for i in group]
            for members in shared:
                factor = cholesky(sum(stats[i]["in"][name] for i in members))
                out, inner = weights[0].shape
                stacked = torch.cat([model.dense[i][name] for i in members]).double() @ factor
                rank = max(1, int((1 - ratio) * out * inner * len(members) / (inner + out * len(members))))
                u, s, v = torch.linalg.svd(stacked, full_matrices=False)
                low = unwhiten((u[:, :rank] * s[:rank]) @ v[:rank], factor).float()
                for i, part in zip(members, low.split(out)):
                    result[i][name] = part
    return result


def modegpt(model, stats, ratio, args, samples):
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    # Ratios of layers: softmax of the negative influence at the paper's temperature, cut where a layer would lose all.
    influence = torch.tensor([layer["influence"] for layer in stats], dtype=torch.float64)
    shares = torch.softmax(-influence / 0.1, 0) * len(stats) * ratio
    for _ in range(100):
        shares = shares.clamp(max=0.95)
        shares *= ratio * len(stats) / shares.sum()
    result = []
    for i, layer in enumerate(model.dense):
        keep = 1 - float(shares[i].clamp(max=0.95))
        new = dict(layer)
        # Type I: the columns of the feed-forward part of the largest ridge leverage, and the best map from them.
        gram = stats[i]["in"]["down_proj"]
        ridge = gram + gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        leverage = torch.linalg.solve(ridge, gram).diagonal()
        kept = leverage.topk(max(1, int(keep * len(gram)))).indices
        new["gate_proj"], new["up_proj"] = mask(layer["gate_proj"], kept), mask(layer["up_proj"], kept)
        part = gram[kept][:, kept] + 1e-6 * gram.diagonal().mean() * torch.eye(len(kept), dtype=gram.dtype)
        down = layer["down_proj"].double() @ torch.linalg.solve(part, gram[kept]).T
        new["down_proj"] = torch.zeros_like(layer["down_proj"])
        new["down_proj"][:, kept] = down.float()
        # Type II: rotary pairs by the product of the energies of queries and keys.
        q, k = stats[i]["q_proj"], stats[i]["k_proj"]
        q = q.reshape(groups, heads // groups, width).sum(1)
        scores = [e[:, : width // 2] + e[:, width // 2 :] for e in (q, k)]
        pairs = (scores[0] * scores[1]).topk(max(1, round(keep * width / 2)), dim=1).indices
        rows = torch.zeros(groups, width, dtype=torch.bool)
        for g in range(groups):
            rows[g, pairs[g]] = rows[g, pairs[g] + width // 2] = True
        new["k_proj"] = layer["k_proj"] * rows.reshape(-1, 1)
        new["q_proj"] = layer["q_proj"] * rows.repeat_interleave(heads // groups, 0).reshape(-1, 1)
        # Type III: values and outputs of a group of heads as one product.
        factor = cholesky(stats[i]["in"]["v_proj"])
        rank = max(1, round(keep * width))
        new["v_proj"], new["o_proj"] = layer["v_proj"].clone(), layer["o_proj"].clone()
        for g in range(groups):
            at = slice(g * width, (g + 1) * width)
            value = layer["v_proj"][at].double() @ factor
            own = [slice(h * width, (h + 1) * width) for h in range(g * heads // groups, (g + 1) * heads // groups)]
            output = torch.cat([layer["o_proj"][:, h] for h in own]).double()
            u, s, v = torch.linalg.svd(value, full_matrices=False)
            u2, s2, v2 = torch.linalg.svd(output @ u * s, full_matrices=False)
            # The values become v2 · vᵀ · factor⁻¹, the outputs u2 · s2.
            small = unwhiten(v2[:rank] @ v, factor)
            new["v_proj"][at] = 0
            new["v_proj"][at][:rank] = small.float()
            for h, part in zip(own, (u2[:, :rank] * s2[:rank]).split(len(layer["o_proj"]))):
                new["o_proj"][:, h] = 0
                new["o_proj"][:, h.start : h.start + rank] = part.float()
        result.append(new)
    return result


def mask(weight, rows):
    new = torch.zeros_like(weight)
    new[rows] = weight[rows]
    return new


def shrunk(gram, share=0.01):
    return (1 - share) * gram + share * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def kfac_svd(model, stats, ratio, args, samples):
    parts, gains = {}, []
    for i, layer in enumerate(model.dense):
        for name, w in layer.items():
            a, b = cholesky(shrunk(stats[i]["in"][name])), cholesky(shrunk(stats[i]["out"][name]))
            u, s, v = torch.linalg.svd(b.T @ w.double() @ a, full_matrices=False)
            parts[i, name] = (a, b, u, s, v)
    # One price for all: a singular value is kept if its square is worth its parameters; maps that would not shrink are dense.
    price_low, price_high = 0.0, max(float(p[3][0]) ** 2 for p in parts.values())

    def ranks(price):
        chosen = {}
        for (i, name), (_, _, _, s, _) in parts.items():
            out, inner = model.dense[i][name].shape
            cost, dense = out + inner, out * inner
            tails = s.square().flip(0).cumsum(0).flip(0)
            counts = torch.arange(1, dense // cost + 1)
            total = tails[counts] + price * cost * counts
            best = int(total.argmin())
            chosen[i, name] = best + 1 if total[best] < price * dense else None
        return chosen

    def kept(chosen):
        total = 0
        for (i, name), rank in chosen.items():
            out, inner = model.dense[i][name].shape
            total += out * inner if rank is None else rank * (out + inner)
        return total

    for _ in range(60):
        price = (price_low + price_high) / 2
        price_low, price_high = (price, price_high) if kept(ranks(price)) > (1 - ratio) * model.numel else (price_low, price)
    result = [{} for _ in model.dense]
    for (i, name), rank in ranks(price_high).items():
        a, b, u, s, v = parts[i, name]
        if rank is None:
            result[i][name] = model.dense[i][name]
            continue
        low = torch.linalg.solve_triangular(b.T, (u[:, :rank] * s[:rank]) @ v[:rank], upper=True)
        result[i][name] = unwhiten(low, a).float()
    return result


def ours(args, spec, lines, ratio, seed, text, rows):
    """Perplexities of lowrank's folder, by lowrank."""
    method, *extra = spec.split(",")
    lowrank = os.environ.get("LOWRANK", "lowrank")
    with tempfile.TemporaryDirectory() as dir:
        dir = Path(dir)
        (dir / "calibration.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        began = time.perf_counter()
        run([lowrank, "compress", "--model", args.model, "--method", method, "--ratio", str(ratio), "--calibration", dir / "calibration.txt",
             "--samples", str(args.samples), "--max-length", str(args.length), "--seed", str(seed), *extra, "-o", dir / "small"], args)
        seconds = time.perf_counter() - began
        return evaluated(args, dir / "small", text, rows, dir) | {"seconds": seconds}


def evaluated(args, model, text, rows, dir):
    lowrank = os.environ.get("LOWRANK", "lowrank")
    (dir / "text.txt").write_text(text, encoding="utf-8")
    (dir / "rows.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    read = [lowrank, "perplexity", "--model", model, "--json"]
    windows = run([*read, "--file", dir / "text.txt", "--stride", "512", "--max-length", "1024"], args)
    lines = run([*read, "--file", dir / "rows.txt"], args)
    return {"text": json.loads(windows)["perplexity"], "rows": json.loads(lines)["perplexity"]}


def run(command, args):
    env = os.environ | {name: str(args.threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexited with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def main():
    args = options()
    torch.set_num_threads(args.threads)
    model = Model(args.model)
    one_line = [" ".join(json.loads(line)["text"].split()) for line in args.calibration.read_text(encoding="utf-8").splitlines()]
    # Cut where a character is whole.
    text = args.text.read_bytes()[: args.bytes].decode("utf-8", errors="ignore")
    held_out = one_line[-args.held_out :]
    ids, rows = model.ids(text), [model.ids(row, model.config.max_position_embeddings) for row in held_out]
    results = []

    def tell(method, ratio, seed, found):
        results.append({"method": method, "ratio": ratio, "seed": seed} | found)
        print(f"{method} {ratio} seed {seed}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()), flush=True)
        if args.output:
            args.output.write_text(json.dumps(results, indent=1) + "\n")

    tell("dense", 0.0, 0, {"text": model.windows(ids), "rows": model.rows(rows)})
    with tempfile.TemporaryDirectory() as dir:
        tell("dense (lowrank)", 0.0, 0, evaluated(args, args.model, text, held_out, Path(dir)))
    functions = {"svd": svd, "asvd": asvd, "svd-llm": svd_llm, "basis-sharing": basis_sharing, "modegpt": modegpt, "kfac-svd": kfac_svd}
    for seed in args.seeds:
        lines = random.Random(seed).sample(one_line[: args.rows], args.samples)
        samples = [model.ids(line, args.length) for line in lines]
        began = time.perf_counter()
        stats = statistics(model, samples) if args.methods else None
        print(f"seed {seed}: {sum(map(len, samples))} tokens, statistics in {time.perf_counter() - began:.0f} s", flush=True)
        for ratio in args.ratios:
            for method in args.methods:
                began = time.perf_counter()
                model.set(functions[method](model, stats, ratio, args, samples))
                seconds = time.perf_counter() - began
                tell(method, ratio, seed, {"text": model.windows(ids), "rows": model.rows(rows), "seconds": seconds})
                model.restore()
            for spec in args.ours:
                tell(f"lowrank {spec}", ratio, seed, ours(args, spec, lines, ratio, seed, text, held_out))


if __name__ == "__main__":
    main()
