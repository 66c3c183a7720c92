#!/usr/bin/env python3
"""The peer of `lowrank embed` and `lowrank generate`: transformers on PyTorch, on the CPU, random weights of real size.

    inference.py make     --shape SHAPE --out DIR     the model folder and the texts of one batch
    inference.py embed    --model DIR --file F                              mean over tokens of each line, batch by batch
    inference.py generate --model DIR --prompt P --max-new-tokens N         greedy, end of sequence ignored

`embed` and `generate` print one JSON line. compare.py runs them against lowrank.
"""

import time

STARTED = time.perf_counter()

import argparse
import json
import math
import random
from pathlib import Path

SHAPES = {
    "minilm": dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "bert-base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "modernbert-base": {},
    "llama-160m": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "qwen3-0.6b": dict(hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
                       head_dim=128, intermediate_size=3072, tie_word_embeddings=True, rope_theta=1e6),
}
DECODERS = {"llama-160m": 32000, "qwen3-0.6b": 151936}  # with their vocabularies
ENCODERS = {"minilm": 30522, "bert-base": 30522, "modernbert-base": 50368}
LONGEST = 128


def mixed_lengths(rows, seed):
    """Token counts spread like short reviews: log-normal around 12, at most LONGEST; the longest rule the padding."""
    rng = random.Random(seed)
    return [min(LONGEST, max(4, round(math.exp(rng.gauss(math.log(12), 0.6))))) for _ in range(rows)]


def line(length, specials, rng):
    """A text of exactly `length` tokens, the special ones counted: each word is in the vocabulary."""
    return " ".join(f"w{rng.randrange(20000)}" for _ in range(length - specials))


def make(args):
    """Writes config.json, model.safetensors, tokenizer.json, and mixed-N.txt, full-N.txt of N batches."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
    from transformers import ModernBertConfig, ModernBertModel, Qwen3Config, Qwen3ForCausalLM

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    encoder = args.shape in ENCODERS
    size = (ENCODERS if encoder else DECODERS)[args.shape]
    shape = SHAPES[args.shape] | {"vocab_size": size}
    if encoder:
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        template, pad = ("[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)]), 0
        special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        if args.shape == "modernbert-base":
            model = ModernBertModel(ModernBertConfig(**shape, **special))
        else:
            model = BertModel(BertConfig(**shape))
    else:
        specials = ["<unk>", "<s>", "</s>"]
        template, pad = ("<s> $A", [("<s>", 1)]), None
        special = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
        if args.shape == "qwen3-0.6b":
            model = Qwen3ForCausalLM(Qwen3Config(**shape, **special))
        else:
            model = LlamaForCausalLM(LlamaConfig(**shape, **special))
    model.save_pretrained(out)
    vocab = specials + [f"w{i}" for i in range(size - len(specials))]
    tok = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocab)}, unk_token=specials[0 if pad is None else 1]))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.add_special_tokens(specials)
    tok.post_processor = processors.TemplateProcessing(single=template[0], special_tokens=template[1])
    tok.save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512 if encoder else 2048}
    if pad is not None:
        settings["pad_token"] = specials[pad]
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    rng = random.Random(1)
    mixed = mixed_lengths(32, seed=3)
    for batches in (1, args.batches):
        for name, lengths in (("mixed", mixed), ("full", [LONGEST] * 32)):
            lines = [line(n, 2, rng) for _ in range(batches) for n in lengths]
            (out / f"{name}-{batches}.txt").write_text("\n".join(lines) + "\n")
    padding = 1 - sum(mixed) / (32 * max(mixed))
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "padding_of_mixed": round(padding, 3)}))


def embed(args):
    import torch
    from transformers import AutoModel, PreTrainedTokenizerFast

    torch.set_num_threads(args.threads)
    tok = PreTrainedTokenizerFast.from_pretrained(args.model)
    model = AutoModel.from_pretrained(args.model).eval()
    lines = Path(args.file).read_text().splitlines()
    rows, tokens = [], 0
    began = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(lines), args.batch_size):
            batch = tok(lines[at : at + args.batch_size], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"].unsqueeze(-1)
            hidden = model(**batch).last_hidden_state
            rows += ((hidden * mask).sum(1) / mask.sum(1)).tolist()
            tokens += int(mask.sum())
    speed = tokens / (time.perf_counter() - began)
    result = {"tokens_per_second": speed, "wall_s": time.perf_counter() - STARTED, "rows": len(rows)}
    print(json.dumps(result | ({"embeddings": rows} if args.rows else {})))


def generate(args):
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(args.threads)
    tok = PreTrainedTokenizerFast.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    model.generation_config.eos_token_id = None
    batch = tok(args.prompt, return_tensors="pt", return_token_type_ids=False)
    began = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(**batch, do_sample=False, max_new_tokens=args.max_new_tokens, pad_token_id=0)
    took = time.perf_counter() - began
    ids = out[0, batch["input_ids"].shape[1] :].tolist()
    print(json.dumps({"ids": ids, "tokens_per_second": len(ids) / took, "wall_s": time.perf_counter() - STARTED}))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    s = sub.add_parser("make")
    s.add_argument("--shape", choices=SHAPES, required=True)
    s.add_argument("--out", required=True)
    s.add_argument("--batches", type=int, default=9)
    s = sub.add_parser("embed")
    s.add_argument("--model", required=True)
    s.add_argument("--file", required=True)
    s.add_argument("--batch-size", type=int, default=32)
    s.add_argument("--threads", type=int, default=2)
    s.add_argument("--rows", action="store_true", help="print the embeddings too")
    s = sub.add_parser("generate")
    s.add_argument("--model", required=True)
    s.add_argument("--prompt", required=True)
    s.add_argument("--max-new-tokens", type=int, default=64)
    s.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    {"make": make, "embed": embed, "generate": generate}[args.command](args)


if __name__ == "__main__":
    main()
