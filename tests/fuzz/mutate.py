"""Hostile variants of a file: its bytes, or the structure that its suffix promises, are changed.

Every mutation is drawn from a ``random.Random``; equal seeds give equal files.
"""

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (0, 1, 2, 4, 5, 8, 127, 128, 255, 256, 32767, 65535, 1 << 24, (1 << 31) - 1, 1 << 31,
         (1 << 32) - 1)  # fmt: skip
NO_STRUCTURE = (struct.error, zlib.error, zipfile.BadZipFile, NotImplementedError)
RAW = "<raw:{}>"
"""A text that stands for JSON that ``json.dumps`` does not write."""
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.0, 1.0, 0.5, -0.0, 1e9, -1e9, 1e308, float("nan"),
    float("inf"), -float("inf"), 255, 256, (1 << 24) - 1, 1 << 24, 1 << 31, 1 << 32, 1 << 53,
    1 << 63, 1 << 64, -(1 << 63), 10**30, "", "0", "1", "a", ".", "..", "../x.png", "/etc/passwd",
    "a/b.png", "\x00", "a\x00.png", "\ud800", "é", "x" * 300, " 1", [], {}, [[]], [0], [1, 2],
    {"a": 0}, [0, 0, 1, 1], [float("nan")] * 4, [[1, 1, 2, 1, 2, 2]], [["1"] * 6],
    {"size": [4, 6], "counts": [24]}, {"size": [4, 6], "counts": "PPYo1111"}, RAW.format("1e999"),
    RAW.format("9" * 5000), RAW.format("[" * 3000 + "]" * 3000), RAW.format('{"a":' * 3000),
    RAW.format('{"id": 1, "id": 2}'), RAW.format("01"), RAW.format("\x01"),
)  # fmt: skip


def mutate(path: Path, content: bytes, rng: random.Random) -> bytes:
    """A hostile variant of a file's ``content``."""
    kind = STRUCTURES.get(path.suffix, mutate_bytes)
    if rng.random() < 0.25:
        kind = mutate_bytes
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        try:
            content = kind(content, rng)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, *NO_STRUCTURE):
            content = mutate_bytes(content, rng)  # an earlier change left no structure
    return content


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat, insert or truncate."""
    data = bytearray(content)
    place = rng.randrange(len(data) + 1)
    length = min(rng.choice((1, 1, 2, 4, 8, 40, 400)), max(len(data) - place, 0))
    operation = rng.randrange(8)
    if not data or operation == 0:
        data[place:place] = rng.randbytes(rng.choice((1, 2, 8, 64)))
    elif operation == 1:
        return bytes(data[:place])
    elif operation == 2:
        del data[place : place + length]
    elif operation == 3:
        data[place:place] = data[place : place + length] * rng.choice((1, 2, 50))
    elif operation == 4:
        order = rng.choice(("<I", ">I", "<H", ">H", "<Q"))
        word = struct.pack(order, rng.choice(WORDS) % (1 << 8 * struct.calcsize(order)))
        data[place : place + len(word)] = word
    elif operation == 5:
        data[place : place + length] = rng.choice((b"\0", b"\xff", b"\x80", b" ")) * length
    else:
        for _ in range(rng.choice((1, 1, 3, 10))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found, waiting = [], [value]
    while waiting:
        node = waiting.pop()
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one node replaced, removed, repeated, swapped, wrapped or nested."""
    nodes = _nodes(value) if isinstance(value, dict | list) else []
    if not nodes or rng.random() < 0.02:
        return rng.choice(HOSTILE)
    container, key = rng.choice(nodes)
    operation = rng.randrange(10)
    if operation < 5:
        container[key] = rng.choice(HOSTILE)
    elif operation == 5:
        del container[key]
    elif operation == 6 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), container[key])
    elif operation == 7:
        other, place = rng.choice(nodes)
        container[key], other[place] = other[place], json.loads(json.dumps(container[key]))
    elif operation == 8 and isinstance(container[key], int | float):
        container[key] = container[key] * rng.choice((-1, 2, 0.5, 1000)) + rng.choice((0, 1, 0.5))
    else:
        container[key] = rng.choice(([container[key]], {"a": container[key]}, str(container[key])))
    return value


def dump(value: Any) -> bytes:
    """JSON text, with what :data:`RAW` stands for."""
    text = json.dumps(value)
    while '"<raw:' in text:
        head, _, rest = text.partition('"<raw:')
        raw, _, tail = rest.partition('>"')
        text = head + json.loads(f'"{raw}"', strict=False) + tail
    return text.encode()


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """A change of the values, or of the text's encoding."""
    if rng.random() < 0.06:
        text = content.decode()
        return rng.choice((b"\xef\xbb\xbf" + content, text.encode("utf-16"), content + b"\xff",
                           content + content, b"", b"null", b"[]", content[: len(content) // 2],
                           content.replace(b":", b": ", 1) + b" " * 100))  # fmt: skip
    return dump(mutate_value(json.loads(content), rng))


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """A change of a text's lines."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    change: Callable[[bytes], bytes] = rng.choice(
        (
            lambda line: line + b"\r", lambda line: line.replace(b":", b"\t"),
            lambda line: line.replace(b":", b"::"), lambda line: line + b",",
            lambda line: b"\xef\xbb\xbf" + line, lambda line: line + b"\0",
            lambda line: b"  " + line, lambda line: b"\t" + line, lambda line: line + b"\n" + line,
            lambda line: b"-1" + line, lambda line: "٣²".encode() + line,
            lambda line: b"9" * 5000 + line, lambda line: line + "\u2028é\x85".encode(),
            lambda line: line + b"\xff\xfe", lambda line: b"", lambda line: line + b"x" * 100_000,
            lambda line: line + b': &a [*a, *a]', lambda line: line + b" {" * 2000,
            lambda line: line.split(b":")[0] + b": 1e999", lambda line: line.split(b":")[0] + b":",
            lambda line: line.split(b":")[0] + b": .nan", lambda line: line.title(),
        )
    )  # fmt: skip
    lines[place] = change(lines[place])
    return b"\n".join(lines)


def mutate_png(content: bytes, rng: random.Random) -> bytes:
    """A change of a chunk or of the inflated rows, with the checksums of the result."""
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        name = content[place + 4 : place + 8]
        chunks.append([name, content[place + 8 : place + 8 + length]])
        place += 12 + length
    chosen = rng.choice(chunks)
    if chosen[0] == b"IDAT" and rng.random() < 0.7:
        chosen[1] = zlib.compress(mutate_bytes(zlib.decompress(chosen[1]), rng))
    elif chosen[0] == b"IHDR" and rng.random() < 0.7:
        fields = list(struct.unpack(">IIBBBBB", chosen[1]))
        number = rng.randrange(7)
        fields[number] = rng.choice(WORDS) % (1 << 32 if number < 2 else 256)
        chosen[1] = struct.pack(">IIBBBBB", *fields)
    elif rng.random() < 0.3:
        chunks.insert(rng.randrange(len(chunks) + 1), list(chosen))
    else:
        chosen[1] = mutate_bytes(chosen[1], rng)
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def mutate_mat(content: bytes, rng: random.Random) -> bytes:
    """A change of the first element, inside its compression."""
    kind, length = struct.unpack_from("<II", content, 128)
    body, rest = content[136 : 136 + length], content[136 + length :]
    if kind != 15:
        return content[:128] + mutate_bytes(content[128:], rng)
    body = zlib.compress(mutate_bytes(zlib.decompress(body), rng))
    return content[:128] + struct.pack("<II", kind, len(body)) + body + rest


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A change of the header, or of the description of the model in it."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and rng.random() < 0.7:
        key = rng.choice(sorted(metadata))
        metadata[key] = mutate_json(metadata[key].encode(), rng).decode()
        text = json.dumps(header).encode()
    else:
        text = mutate_json(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def mutate_zip(content: bytes, rng: random.Random) -> bytes:
    """A change of one file in an archive, with the checksums of the result."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice([name for name in files if name.endswith(".pkl")] + sorted(files))
    files[chosen] = mutate_bytes(files[chosen], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


STRUCTURES = {
    ".json": mutate_json,
    ".txt": mutate_lines,
    ".csv": mutate_lines,
    ".yaml": mutate_lines,
    ".png": mutate_png,
    ".mat": mutate_mat,
    ".safetensors": mutate_safetensors,
    ".pth": mutate_zip,
}
