"""Files changed at random, from a seed: bytes anywhere, and values within what has a structure, where bytes changed at
random would hit digits and letters only.

Nothing here uses what the package reads files with.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import msgpack

MARKUP = '"><script>alert(1)</script>'
OUTSIDE = "../../outside"
FORMULA = "=cmd|' /C calc'!A0"
_HALF_A_PAIR = "\ud800"
_NUMBERS = (
    0, 1, -1, 2, 7, 0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63,
    -(2**63), 10**39, 10**400,
)  # fmt: skip
_TEXTS = (
    "", " ", "x", "en", "\x00", "\u2028", "\ufeff", "é" * 300, "nan", "1e999", "true", "0", _HALF_A_PAIR, OUTSIDE,
    "/etc/passwd", "C:\\x", MARKUP, FORMULA, "\\input{/etc/passwd}", "$(touch x)", "{{ 1 / 0 }}", "%s%n", "a\nb", "𐀀",
)  # fmt: skip
_TEMPLATES = (
    "{{ 1 / 0 }}", "{% for", "{{ messages }}", "{{ raise_exception('no') }}", "{{ x.y.z }}", "{% if %}", "{{ [] * 9 }}",
    "{% for i in range(10 ** 9) %}{% endfor %}", "{{ ''.__class__.__mro__ }}", "{{ strftime_now(1) }}",
)  # fmt: skip


def mutated(files: Mapping[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """The files with one of them changed, in one place to three."""
    changed = dict(files)
    name = rng.choice(sorted(changed))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        changed[name] = _changed(name, changed[name], rng)
    return changed


def _changed(name: str, content: bytes, rng: random.Random) -> bytes:
    inside = _INSIDE.get(PurePath(name).suffix)
    if inside is not None and rng.random() < 0.75:
        try:
            return inside(content, rng)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error, RecursionError):
            pass  # an earlier change has left no structure
    return _other_bytes(content, rng)


def _other_bytes(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 8, 64))
    if rng.random() < 0.5:  # headers stand in front
        at = rng.randrange(min(len(content), 200) + 1)
    kind = rng.randrange(8)
    if kind == 0 and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * size + content[at + size :]
    if kind == 2:
        return content[:at]
    if kind == 3:
        return content[:at] + content[at + size :]
    if kind == 4:
        return content[:at] + rng.randbytes(size) + content[at:]
    if kind == 5:
        return content[:at] + content[at : at + size] * rng.choice((2, 3, 100)) + content[at + size :]
    if kind == 6:
        number = rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
        return content[:at] + number.to_bytes(8, "little") + content[at + 8 :]
    other = rng.randrange(len(content) + 1)
    return content[:at] + content[other : other + 64] + content[at:]


def _other_json(content: bytes, rng: random.Random) -> bytes:
    changed = (_other_value if rng.random() < 0.4 else _other_tree)(json.loads(content), rng)
    return _as_json(changed, rng).encode("utf-8", "surrogatepass")


def _as_json(value: Any, rng: random.Random) -> str:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.03 and text.startswith("{") and len(text) > 2:  # a name that is there twice
        return text[:-1] + ", " + text[1 : text.index(":")] + ": null}"
    return text


def _other_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.decode().splitlines()
    i = rng.randrange(len(lines))
    lines[i] = _other_json(lines[i].encode(), rng).decode("utf-8", "replace")
    return "\n".join(lines).encode()


def _other_table(content: bytes, rng: random.Random) -> bytes:
    separator = "\t" if b"\t" in content else ","
    rows = list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=separator))
    rows = _other_tree(rows, rng)
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator).writerows([[str(x) for x in row] for row in rows])
    return out.getvalue().encode("utf-8", "surrogatepass")


def _other_template(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(_TEMPLATES).encode() + content[at:]


def _other_header(content: bytes, rng: random.Random) -> bytes:
    """safetensors: another header of JSON, and its length with it."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    if "sha256" in metadata and rng.random() < 0.5:  # files of version 0.1 have none, so nothing tells of the change
        del metadata["sha256"]
        metadata["format"] = metadata.get("format", "").replace("-2", "-1")
    inner = header.get("__metadata__", {}).get("mwork") if rng.random() < 0.3 else None
    if inner is not None:
        header["__metadata__"]["mwork"] = _as_json(_other_tree(json.loads(inner), rng), rng)
    else:
        header = _other_tree(header, rng)
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _other_msgpack(content: bytes, rng: random.Random) -> bytes:
    tree = msgpack.unpackb(content, strict_map_key=False)
    packed = msgpack.packb(_other_tree(tree, rng, special=_as_extension), unicode_errors="surrogatepass")
    assert packed is not None
    return packed


def _as_extension(value: object, rng: random.Random) -> object:
    """Another array: flax has (shape, dtype, bytes) in an extension."""
    if not isinstance(value, msgpack.ExtType):
        return value
    inner = _other_tree(list(msgpack.unpackb(value.data)), rng)
    return msgpack.ExtType(rng.choice((value.code, value.code, 0, 1, 2, 3, 99)), msgpack.packb(inner))


def _other_tree(value: Any, rng: random.Random, special: Callable[[Any, random.Random], Any] | None = None) -> Any:
    """The value with one node replaced, removed, added to, or put under another name. The node is reached by steps
    drawn one after the other, so that what lies near the root is hit often."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {n: v for n, v in value.items() if n != name}
        if kind < 0.15:
            return {**value, str(name) + rng.choice(("x", "", "_scale", ".weight")): value[name], "new": 1}
        if kind < 0.2:
            return {rng.choice(_TEXTS) if n == name else n: v for n, v in value.items()}
        return {n: _other_tree(v, rng, special) if n == name else v for n, v in value.items()}
    if isinstance(value, list | tuple) and value and rng.random() < 0.85:
        i, kind = rng.randrange(len(value)), rng.random()
        if kind < 0.1:
            return [*value[:i], *value[i + 1 :]]
        if kind < 0.2:
            return [*value[: i + 1], *value[i:]]
        return [*value[:i], _other_tree(value[i], rng, special), *value[i + 1 :]]
    changed = special(value, rng) if special is not None else value
    return _other_leaf(value, rng) if changed is value else changed


def _other_value(value: Any, rng: random.Random) -> Any:
    """The value with one leaf replaced by another of its kind: what a check of kinds lets through."""
    if isinstance(value, dict) and value:
        name = rng.choice(list(value))
        return {n: _other_value(v, rng) if n == name else v for n, v in value.items()}
    if isinstance(value, list) and value:
        i = rng.randrange(len(value))
        return [*value[:i], _other_value(value[i], rng), *value[i + 1 :]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return rng.choice(_TEXTS)
    return rng.choice([n for n in _NUMBERS if isinstance(n, type(value))] or [value])


def _other_leaf(value: Any, rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.35 and isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), *_NUMBERS))
    if kind < 0.35 and isinstance(value, str):
        return rng.choice((value + rng.choice(_TEXTS), value[1:], value.upper(), value * 2, *_TEXTS))
    if kind < 0.4:
        deep: Any = 0
        for _ in range(rng.choice((3, 50, 500))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return rng.choice((None, True, False, [], {}, [value], {"a": value}, rng.choice(_NUMBERS), rng.choice(_TEXTS)))


_GGUF_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_GGUF_STRING, _GGUF_LIST, _GGUF_ALIGNMENT = 8, 9, 32


def _other_metadata(content: bytes, rng: random.Random) -> bytes:
    """GGUF: another value, kind of value or name in the metadata, or another table of tensors; the rest moves along."""
    version, tensors, count = struct.unpack_from("<IQQ", content, 4)
    at, entries = 24, []
    for _ in range(count):
        begin, key = at, _gguf_text(content, at)
        at += 8 + len(key)
        (kind,) = struct.unpack_from("<I", content, at)
        end = _gguf_end(content, at + 4, kind)
        entries.append((content[begin:at], content[at:end]))
        at = end
    listed = at
    for _ in range(tensors):
        at += 8 + len(_gguf_text(content, at))
        (dimensions,) = struct.unpack_from("<I", content, at)
        at += 4 + 8 * dimensions + 12
    table, data = content[listed:at], content[-(-at // _GGUF_ALIGNMENT) * _GGUF_ALIGNMENT :]
    if rng.random() < 0.15:
        table = _other_bytes(table, rng)
    else:
        i = rng.randrange(len(entries))
        key, value = entries[i]
        drawn = rng.random()
        if drawn < 0.1:
            entries.pop(i)
        elif drawn < 0.2:
            entries.append((key, value))
        elif drawn < 0.3:
            entries[i] = (_gguf_packed(rng.choice(_TEXTS)), value)
        else:
            entries[i] = (key, _gguf_value(rng))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, len(entries))
    begin = head + b"".join(key + value for key, value in entries) + table
    return begin + b"\x00" * (-len(begin) % _GGUF_ALIGNMENT) + data


def _gguf_text(content: bytes, at: int) -> bytes:
    (length,) = struct.unpack_from("<Q", content, at)
    return content[at + 8 : at + 8 + length]


def _gguf_end(content: bytes, at: int, kind: int) -> int:
    """Where a value that begins at `at` ends."""
    if kind == _GGUF_STRING:
        return at + 8 + len(_gguf_text(content, at))
    if kind == _GGUF_LIST:
        inner, count = struct.unpack_from("<IQ", content, at)
        at += 12
        if count > len(content):
            raise ValueError("an earlier change has made it longer than the file")
        for _ in range(count):
            at = _gguf_end(content, at, inner)
        return at
    return at + struct.calcsize(_GGUF_SCALARS[kind])


def _gguf_packed(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _gguf_scalar(rng: random.Random) -> tuple[int, bytes]:
    kind = rng.choice((*_GGUF_SCALARS, _GGUF_STRING))
    if kind == _GGUF_STRING:
        return kind, _gguf_packed(rng.choice(_TEXTS))
    layout = _GGUF_SCALARS[kind]
    for number in rng.sample(_NUMBERS, len(_NUMBERS)):
        try:
            return kind, struct.pack(layout, number if layout[1] in "fd" else int(number))
        except (struct.error, OverflowError, ValueError):
            continue
    raise AssertionError("0 fits every kind")


def _gguf_value(rng: random.Random) -> bytes:
    kind, value = _gguf_scalar(rng)
    if rng.random() < 0.6:
        return struct.pack("<I", kind) + value
    count = rng.choice((0, 1, 2, 300))
    return struct.pack("<IIQ", _GGUF_LIST, kind, rng.choice((count, count, count, 2**40))) + value * count


_INSIDE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _other_json,
    ".journal": _other_json,
    ".jsonl": _other_lines,
    ".ndjson": _other_lines,
    ".csv": _other_table,
    ".tsv": _other_table,
    ".jinja": _other_template,
    ".safetensors": _other_header,
    ".msgpack": _other_msgpack,
    ".gguf": _other_metadata,
}
