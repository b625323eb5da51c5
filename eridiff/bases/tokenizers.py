"""CLIP's tokenizers, which come with eridiff: folders as the hub has them, unpacked into the user's cache when needed.

The vocabulary is OpenAI's (MIT, vocabulary/LICENSE-CLIP): the merges, of which the tokens follow.
"""

import gzip
import json
from pathlib import Path

from eridiff.core.files import write_text
from eridiff.machine.local import user_cache

MERGES = Path(__file__).parent / "vocabulary" / "clip-merges.txt.gz"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PADS = {"clip-l": END, "clip-g": "!"}  # what a short caption is filled up with


def built_in_tokenizers() -> list[Path]:
    """The folders of CLIP's tokenizers."""
    return [clip_tokenizer(kind) for kind in PADS]


def clip_tokenizer(kind: str) -> Path:
    """The folder of one tokenizer: vocab.json, merges.txt, tokenizer_config.json, the same bytes on each machine."""
    folder = user_cache() / "tokenizers" / f"{kind}-1"
    if (folder / "tokenizer_config.json").exists():
        return folder
    merges = gzip.decompress(MERGES.read_bytes()).decode("utf-8")
    tokens = clip_tokens(merges.split("\n")[1:-1])  # the first line is a version
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": PADS[kind], "unk_token": END}
    more = {"do_lower_case": True, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    write_text(folder / "vocab.json", json.dumps(tokens, ensure_ascii=False, separators=(",", ":")))
    write_text(folder / "merges.txt", merges)
    write_text(folder / "tokenizer_config.json", json.dumps(special | more, indent=2, sort_keys=True) + "\n")
    return folder


def clip_tokens(merges: list[str]) -> dict[str, int]:
    """Token numbers as OpenAI counts them: bytes, bytes at a word's end, merges, begin, end."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)  # unprintable bytes stand as characters from 256 on
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]
    words = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    return {token: number for number, token in enumerate([*words, BEGIN, END])}
