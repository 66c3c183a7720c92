#!/usr/bin/env python3
"""Sentence embeddings of an encoder through transformers: the mean of the last hidden state over the text's tokens.

    embed.py MODEL [--text T … | --file F] [--max-length N] > golden.json
    embed.py MODEL --check OURS.json [--tolerance 1e-4]

The first form prints {"rows": [{"text", "tokens", "embedding", "normalized"}]}, one text at a time, in f32, special
tokens counted in the mean. The second computes the same for the texts and compares them with the `embedding`s that
`lowrank embed --json` printed for them (normalized ones with --normalized); exit 1 on a difference.
--cross-check compares with sentence-transformers' own mean pooling as well.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

TEXTS = [
    "This is an example sentence.",
    "A man is playing a guitar on the street.",
    "Someone performs music outside.",
    "Quarterly revenue rose by 12.5 % to $3.1 billion.",
    "",
    "Naïve café — 東京 🙂",
    " ".join(["The quick brown fox jumps over the lazy dog."] * 80),
]


def embed(model, tokenizer, text, limit):
    """Number of tokens, and their mean `[d_model]`."""
    inputs = tokenizer([text], truncation=True, max_length=limit, padding=False, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state[0]
    return hidden.shape[0], hidden.mean(0)


def cross_check(folder, texts, limit, rows):
    """The largest difference from sentence-transformers with its mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    words = Transformer(str(folder), max_seq_length=limit)
    pooling = Pooling(words.get_word_embedding_dimension(), pooling_mode="mean")
    theirs = SentenceTransformer(modules=[words, pooling], device="cpu").encode(texts, batch_size=1, show_progress_bar=False)
    return max((torch.tensor(t) - r).abs().max().item() for t, r in zip(theirs, rows))


def compare(rows, path, normalized, tolerance):
    """Compares with a file of ours; the exit status."""
    ours = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
    if len(ours) != len(rows):
        print(f"FAIL {path}: {len(ours)} rows, expected {len(rows)}")
        return 1
    status = 0
    for row, mine in zip(rows, ours):
        expected = torch.tensor(row["normalized" if normalized else "embedding"])
        got = torch.tensor(mine["embedding"])
        off = (got - expected).abs().max().item() if got.shape == expected.shape else math.nan
        good = off <= tolerance
        print(f"{'ok  ' if good else 'FAIL'} {off:.2e} {row['tokens']:4d} tokens {row['text'][:50]!r}")
        status |= not good
    return int(status)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="an encoder's folder, all-MiniLM-L6-v2 for one")
    p.add_argument("--text", action="append", help="may be repeated; without it and --file a built-in list")
    p.add_argument("--file", type=Path, help="one text per line")
    p.add_argument("--max-length", type=int, help="default: the model's number of positions")
    p.add_argument("--check", metavar="OURS.json")
    p.add_argument("--normalized", action="store_true", help="compare with the normalized embeddings")
    p.add_argument("--tolerance", type=float, default=1e-4)
    p.add_argument("--cross-check", action="store_true")
    args = p.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    texts = args.text or (args.file.read_text(encoding="utf-8").splitlines() if args.file else TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModel.from_pretrained(args.model, attn_implementation="eager", dtype=torch.float32).eval()
    limit = args.max_length or model.config.max_position_embeddings
    rows, vectors = [], []
    for text in texts:
        tokens, mean = embed(model, tokenizer, text, limit)
        unit = torch.nn.functional.normalize(mean, dim=0)
        vectors.append(mean)
        rows.append({"text": text, "tokens": tokens, "embedding": mean.tolist(), "normalized": unit.tolist()})
    if args.cross_check:
        off = cross_check(args.model, texts, limit, vectors)
        print(f"sentence-transformers: largest difference {off:.2e}", file=sys.stderr)
        if not off <= args.tolerance:
            sys.exit(1)
    if args.check:
        sys.exit(compare(rows, args.check, args.normalized, args.tolerance))
    print(json.dumps({"max_length": limit, "rows": rows}, ensure_ascii=False))


if __name__ == "__main__":
    main()
