"""Inputs that once hung, exploded or ended in a traceback; what a fuzzing finds is added here, with its answer."""

import json
import struct
from pathlib import Path

LEVELS = 10


def alias_bomb(ends: str = "[x, x]", item: str = "[{}]") -> str:
    """Ten lists in ten lists in ... by aliases: a few hundred bytes that stand for 10^9 values."""
    lines = [f"a0: &a0 {ends}"]
    for level in range(1, LEVELS):
        lines.append(f"a{level}: &a{level} " + item.format(", ".join([f"*a{level - 1}"] * 10)))
    return "\n".join(lines)


# YAML text -> what its refusal says.
YAML: dict[str, tuple[str, str]] = {
    "alias bomb": (alias_bomb(), "aliases counted as what they stand for"),
    "merge bomb": (alias_bomb("{x: 1}", "{{<<: [{}]}}"), "aliases counted as what they stand for"),
    "itself": ("&m {x: *m}", r"\*m stands inside what it names"),
    "itself merged": ("&m {<<: *m}", r"\*m stands inside what it names"),
    "itself in a list": ("a: &m [*m]", r"\*m stands inside what it names"),
    "3,000 lists": ("a: " + "[" * 3000, "more than 32 levels"),
    "3,000 lists by dashes": ("- " * 3000, "more than 32 levels"),
    "3,000 keys in keys": ("? " * 3000, "more than 32 levels"),
    "5,000 digits": ("a: " + "9" * 5000, "a number, or what follows a tag, cannot be read"),
    "5,000 hex digits": ("a: 0x" + "f" * 5000, "a: a number of 20000 bits, and none has more than 64"),
    "a number as a key": (f"a: {{{2**70}: 1}}", "a key of a: a number of 71 bits"),
    "an int that is none": ("a: !!int foo", "what follows a tag"),
    "an int of nothing": ("a: !!int ", "what follows a tag"),
    "a float of nothing": ("a: !!float ", "what follows a tag"),
    "a bool that is none": ("a: !!bool foo", "what follows a tag"),
    "a day that is none": ("a: 2024-13-45", "what follows a tag"),
    "no letter": ('a: "\\U7fffffff"', "what follows a tag"),
    "half a letter": ('a: "\\ud800"', r"a: '\\ud800' holds the control character U\+D800"),
    "half a letter as a key": ('"\\udfff": 1', r"a key of the file: .* holds the control character U\+DFFF"),
    "an escape": ('a: {b: ["\\e[31m"]}', r"a\.b\.0: '\\x1b\[31m' holds the control character U\+001B"),
    "another end of line": ('a: "x\\Ny"', r"a: .* holds the control character U\+0085"),
    "a list as a key": ("? [1, 2]\n: x", "a key of the file: a list or section"),
    "an unknown tag": ("a: !!python/object:os.system 1", "is no valid YAML"),
    "a key twice": ("a: 1\na: 2", "found duplicate key"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "a NUL": ("a: \0", "is no valid YAML"),
    "a long text": ("a: " + "x" * 300_000, "more than 262144 bytes"),
}
# Values that YAML may give and no params take.
NUMBERS = {
    "train.steps": (10**11, "less than or equal to 10000000"),
    "train.seed": (1 << 64, "a number of 65 bits, and none has more than 64"),
    "train.batch_size": (10**9, "less than or equal to 1024"),
    "train.accumulation": (10**9, "less than or equal to 65536"),
    "train.lora.rank": (10**9, "less than or equal to 4096"),
    "train.lora.alpha": (1e300, "less than or equal to 1000000"),
    "train.optimizer.lr": (1e300, "less than or equal to 100"),
    "train.guidance": (-1, "greater than or equal to 0"),
    "latents.batch_size": (10**9, "less than or equal to 1024"),
    "latents.tile": (1 << 40, "less than or equal to 16384"),
    "text.batch_size": (10**9, "less than or equal to 4096"),
    "buckets.resolution": (10**9, "less than or equal to 8192"),
    "buckets.more_resolutions": ([512] * 17, "at most 16 items"),
    "sample.size": ([10**9, 10**9], "less than or equal to 8192"),
    "sample.seeds": (list(range(1001)), "at most 1000 items"),
    "sample.steps": (10**9, "less than or equal to 1000"),
    "sample.strengths": ([1e300], "less than or equal to 1000"),
    "export.checkpoint": (10**11, "less than or equal to 10000000"),
    "export.title": ("x" * 20_001, "at most 20000 characters"),
}
# Texts whose override DVC would write so that its reader takes them for something else, where brackets stand around.
OVERRIDES = ("?;", ":&", "?-", "?b &")


def header_file(path: Path, header: object, data: int = 0) -> Path:
    """A safetensors file with any header: text, bytes or a value."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def tensor(begin: int = 0, end: int = 4, *, dtype: str = "F32", shape: object = (1,)) -> dict[str, object]:
    """A line of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BOMB = b'{"a":{"dtype":"F32","shape":[' + b"[]," * 5_000_000 + b'[]],"data_offsets":[0,0]}}'
HEADERS: dict[str, tuple[object, int]] = {
    "empty lists": (BOMB, 4),
    "3,000 lists": ("[" * 3000, 4),
    "a list": ([], 4),
    "5,000 digits": ('{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 4]}}', 4),
    "a large shape": ({"a": tensor(shape=[(1 << 62)] * 1000)}, 4),
    "one place for many": ({"a": tensor(), "b": tensor()}, 4),
    "a hole": ({"a": tensor(4, 8)}, 8),
    "half a letter": ('{"a\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', 4),
    "half a letter in the metadata": ('{"__metadata__": {"a": "\\ud800"}}', 0),
    "an escape": ({"a\x1b[31m": tensor()}, 4),
    "a line": ({"a\nerror: forged": tensor()}, 4),
    "the other direction": ({"a\u202etxt": tensor()}, 4),
    "a long name": ({"a" * 5000: tensor()}, 4),
    "a list for a dtype": ({"a": tensor(dtype=["F32"])}, 4),  # type: ignore[arg-type]
    "a number for a line": ({"a": 1}, 4),
    "metadata that are a list": ({"__metadata__": ["a"]}, 0),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0),
    "another encoding": ('{"a": {}}'.encode("utf-16"), 4),
    "booleans": ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [False, 4]}}, 4),
}
COMPONENT = {"config": {}, "files": {"a.json": 1}, "digest": "0" * 64}
# Pointer -> what its refusal says.
POINTERS: dict[str, tuple[object, str]] = {
    "components that are a list": (
        {"family": "sdxl", "part": "vae", "components": []},
        r"components is \[\]",
    ),
    "a component that is a list": (
        {"family": "sdxl", "part": "vae", "components": {"vae": []}},
        r"components\.vae is \[\]",
    ),
    "a config that is a list": (
        {"family": "sdxl", "part": "vae", "components": {"vae": {**COMPONENT, "config": []}}},
        r"components\.vae\.config is \[\]",
    ),
    "a size that is a text": (
        {"family": "sdxl", "part": "vae", "components": {"vae": {**COMPONENT, "files": {"a": "1"}}}},
        r"components\.vae\.files\.a is '1'",
    ),
    "a name that leads elsewhere": (
        {"family": "sdxl", "part": "vae", "components": {"vae": {**COMPONENT, "files": {"../a": 1}}}},
        r"\.\./a",
    ),
    "a family that is a number": ({"family": 1, "part": "vae", "components": {}}, "family is 1"),
    "a list": ([], "no object"),
    "null": (None, "it holds None, no object"),
    "3,000 lists": ("[" * 3000, "too deep|more than 32 levels"),
    "3,000 closed lists": ('{"a": ' + "[" * 100 + "]" * 100 + "}", "more than 32 levels"),
    "5,000 digits": ('{"family": ' + "9" * 5000 + "}", "digits"),
    "a key twice": ('{"family": "sdxl", "family": "flux"}', "the key 'family' stands twice"),
    "half a letter": ('{"family": "\\ud800"}', r"U\+D800"),
    "too long": ('{"a": "' + "x" * (1 << 22) + '"}', "more than 4194304 bytes"),
}
