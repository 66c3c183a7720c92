"""GGUF files beside llama.cpp: its files here, ours there.

    check_gguf.py LOWRANK LLAMA_CPP MODEL [ADAPTER]

LOWRANK is our binary, LLAMA_CPP a folder with llama.cpp's `build/bin` and its files `model-*.gguf` of MODEL (a Hugging Face
folder), ADAPTER a LoRA of MODEL. Of every type that llama.cpp has a file of:

- our greedy continuation of its file is its own;
- our file has its tensors, byte for byte (but where two scales are equally good);
- llama.cpp's greedy continuation of our file is that of its own.

With an adapter, llama.cpp continues with our file of it as we do with the folder.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from gguf import GGUFReader

PROMPT = "The capital of France is"
TOKENS = 24


def ours(lowrank, *args):
    """The text that our command continues the prompt with."""
    command = [lowrank, "generate", "--prompt", PROMPT, "--max-new-tokens", str(TOKENS), "--json", *map(str, args)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["text"]


def theirs(llama, *args):
    """The text that llama.cpp continues the prompt with."""
    command = [llama / "build/bin/llama-completion", "-p", PROMPT, "-n", str(TOKENS), "--temp", "0", "-no-cnv", "-t", "2"]
    done = subprocess.run([*command, *map(str, args)], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    text = done.stdout.decode()
    return text[text.index(PROMPT) + len(PROMPT) :].replace("[end of text]", "").rstrip()


def differing(a, b):
    """Tensors that differ, with the share of bytes, and those that only one file has."""
    a, b = ({t.name: t for t in GGUFReader(path).tensors} for path in (a, b))
    only = sorted(a.keys() ^ b.keys())
    rows = []
    for name in sorted(a.keys() & b.keys()):
        if a[name].tensor_type != b[name].tensor_type:
            rows.append((name, f"{a[name].tensor_type.name} and {b[name].tensor_type.name}"))
        elif not np.array_equal(a[name].data, b[name].data):
            x, y = (np.ascontiguousarray(t[name].data).view(np.uint8).ravel() for t in (a, b))
            rows.append((name, f"{(x != y).mean():.2e} of the bytes"))
    return only, rows


def main():
    lowrank = pathlib.Path(sys.argv[1])
    llama, model = map(pathlib.Path, sys.argv[2:4])
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "ours.gguf"
        for file in sorted(llama.glob("model-*.gguf")):
            kind = file.stem.removeprefix("model-")
            convert = [lowrank, "convert", "--model", model, "--to", "gguf", "--type", kind, "-o", out]
            subprocess.run(convert, check=True, capture_output=True)
            only, rows = differing(file, out)
            texts = [ours(lowrank, "--model", file).rstrip(), theirs(llama, "-m", file), theirs(llama, "-m", out)]
            same = texts[0] == texts[1], texts[1] == texts[2]
            wrong += sum(not it for it in same) + len(only)
            print(f"{kind}: its file here {same[0]}, ours there {same[1]}, {len(rows)} tensors differ", rows[:3], only[:3])
            if not all(same):
                print("  ", texts)
        if len(sys.argv) > 4:
            adapter = pathlib.Path(sys.argv[4])
            lora = pathlib.Path(folder) / "adapter.gguf"
            convert = [lowrank, "convert", "--model", model, "--adapter", adapter, "--to", "gguf", "-o", lora]
            subprocess.run(convert, check=True, capture_output=True)
            base = llama / "model-bf16.gguf"
            texts = ours(lowrank, "--model", model, "--adapter", adapter).rstrip(), theirs(llama, "-m", base, "--lora", lora)
            wrong += texts[0] != texts[1]
            print(f"adapter: {texts[0] == texts[1]}", texts, "; without it:", theirs(llama, "-m", base))
    sys.exit(wrong > 0)


main()
