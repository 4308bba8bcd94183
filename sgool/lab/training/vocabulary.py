"""Step 0: cut CLIP's byte pair vocabulary down to the words of the world.

``python -m sgool.lab.training.vocabulary`` writes the same vocabulary twice: for transformers (``model/tokenizer``)
and for open_clip (``clips/bpe.txt.gz``). Any other text still encodes, byte by byte.
"""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer

from sgool.lab.world import all_scenes
from sgool.tiny import CLIPS, MODEL


def merges_of(words: set[str], full: SimpleTokenizer) -> list[tuple[str, str]]:
    """The merges, in CLIP's order, that encoding ``words`` applies."""
    used = set()
    for word in words:
        parts = [*(full.byte_encoder[b] for b in word.encode())]
        parts[-1] += "</w>"
        while len(parts) > 1:
            ranked = [(full.bpe_ranks.get(pair, float("inf")), pair) for pair in itertools.pairwise(parts)]
            rank, (first, second) = min(ranked)
            if rank == float("inf"):
                break
            used.add((rank, first, second))
            place = next(i for i in range(len(parts)) if tuple(parts[i : i + 2]) == (first, second))
            parts[place : place + 2] = [first + second]
    return [(first, second) for _, first, second in sorted(used)]


def write_tokenizer(folder: Path, letters: list[str], merges: list[tuple[str, str]]) -> int:
    """Write the tokenizer in transformers' format; returns the size of the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return len(tokens)


def write(words: set[str], tokenizer: Path, bpe: Path) -> int:
    """Write both forms of the vocabulary of these words; returns its size."""
    full = SimpleTokenizer()
    merges = merges_of(words, full)
    size = write_tokenizer(tokenizer, list(full.byte_encoder.values()), merges)
    bpe.parent.mkdir(parents=True, exist_ok=True)
    with open(bpe, "wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
        packed.write("\n".join(["#version: 0.2", *map(" ".join, merges)]).encode())
    return size


def main() -> None:
    words = {word for scene in all_scenes() for word in scene.caption.split()}
    size = write(words, MODEL / "tokenizer", CLIPS["guide"].parent / "bpe.txt.gz")
    print(f"{size} tokens")


if __name__ == "__main__":
    main()
