"""Documents on their way to the device: read from files, tokenized, cut, padded to few shapes, batched.

A shape is a program to compile, so lengths are rounded up to a short list of buckets and every batch of a bucket has
the same number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.files import read_text
from mwork_jax.load import Model

LANGUAGES = ("en", "de", "fr", "es", "ru", "zh", "vi", "th", "ar", "sw")  # of the project's own data set
Document = str | np.ndarray


class Encoded(NamedTuple):
    """One tokenized document."""

    tokens: np.ndarray  # int32 [time]
    bytes: int  # UTF-8 bytes that the tokens after the first stand for


class Batch(NamedTuple):
    """Documents of one bucket. Rows beyond the last document have length 0."""

    tokens: np.ndarray  # int32 [rows, bucket], padded on the right with 0
    lengths: np.ndarray  # int32 [rows]
    documents: np.ndarray  # int32 [rows], the document's place in the stream, -1 for an empty row


@dataclass(frozen=True)
class Batching:
    """How documents become batches. tokens_per_batch bounds rows x bucket; max_tokens cuts longer documents."""

    max_tokens: int = 512
    tokens_per_batch: int = 1024

    def rows(self, bucket: int) -> int:
        return max(1, self.tokens_per_batch // bucket)


def bucket_length(length: int, longest: int) -> int:
    """The shape a document of `length` tokens runs in: at least 16, at most a quarter longer, never over `longest`.

    Buckets are the powers of two and three steps between each two: 16, 20, 24, 28, 32, 40 ...
    """
    step = 4
    while step * 8 < length:
        step *= 2
    return min(max(16, -(-length // step) * step), longest)


def encoded(
    model: Model, documents: Iterable[Document | Encoded], max_tokens: int, *, where: str = "corpus"
) -> Iterator[Encoded]:
    """Tokenizes a stream of documents, cut at `max_tokens`. What is encoded already passes through.

    Raises InputError for a document of fewer than two tokens and for an empty stream.
    """
    place = -1
    for place, document in enumerate(documents):
        if isinstance(document, Encoded):
            yield document
            continue
        name = f"{where}: document {place + 1}"
        whole = model.encode(document, where=name)
        if whole.size < 2:
            raise InputError(f"{name} has {whole.size} token{'s' * (whole.size != 1)}; at least two are needed")
        yield Encoded(whole[:max_tokens], _predicted_bytes(model, document, whole, max_tokens))
    if place < 0:
        raise InputError(f"{where}: no documents; at least one is needed")


def _predicted_bytes(model: Model, document: Document, whole: np.ndarray, max_tokens: int) -> int:
    """UTF-8 bytes of what the tokens after the first stand for; 0 for token arrays, whose text is not known."""
    if not isinstance(document, str) or model.tokenizer is None:
        return 0
    cut = whole.size > max_tokens
    text = model.tokenizer.decode(whole[:max_tokens], skip_special_tokens=True) if cut else document
    first = "" if whole[0] == model.config.bos_id else model.tokenizer.decode(whole[:1])
    return len(text.encode()) - len(first.encode())


def stream_batches(documents: Iterable[Encoded], batching: Batching) -> Iterator[Batch]:
    """Batches of a stream, each as soon as its bucket is full; what is left over at the end comes last.

    Holds at most one batch per bucket, however many documents come, and every batch of a bucket has the same shape.
    """
    waiting: dict[int, list[tuple[int, np.ndarray]]] = {}
    for place, document in enumerate(documents):
        bucket = bucket_length(document.tokens.size, batching.max_tokens)
        rows = waiting.setdefault(bucket, [])
        rows.append((place, document.tokens))
        if len(rows) == batching.rows(bucket):
            yield _pad(waiting.pop(bucket), bucket, batching.rows(bucket))
    # From the longest down, shorter documents fill the rows that longer ones leave empty: fewer batches in all.
    left = [(bucket, row) for bucket in sorted(waiting, reverse=True) for row in waiting[bucket]]
    while left:
        bucket = left[0][0]
        size = batching.rows(bucket)
        yield _pad([row for _, row in left[:size]], bucket, size)
        left = left[size:]


def list_batches(documents: Sequence[Encoded], batching: Batching) -> Iterator[Batch]:
    """Batches of documents that are all there: sorted by length, so that little is padded and no row is empty."""
    order = sorted(range(len(documents)), key=lambda i: -documents[i].tokens.size)
    while order:
        bucket = bucket_length(documents[order[0]].tokens.size, batching.max_tokens)
        size = min(len(order), batching.rows(bucket))
        yield _pad([(i, documents[i].tokens) for i in order[:size]], bucket, size)
        order = order[size:]


def _pad(documents: list[tuple[int, np.ndarray]], bucket: int, rows: int) -> Batch:
    tokens = np.zeros((rows, bucket), np.int32)
    lengths, places = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
    for row, (place, document) in enumerate(documents):
        tokens[row, : document.size] = document
        lengths[row], places[row] = document.size, place
    return Batch(tokens, lengths, places)


def read_corpus(path: str | Path) -> list[str]:
    """The documents of a file, without empty ones.

    `.jsonl`: one object per line with a "text". Anything else: plain text, documents separated by blank lines, or one
    per line where there is no blank line. Raises InputError where the file is missing, not UTF-8, not of that form, or
    without a document.
    """
    text = read_text(path)
    if Path(path).suffix == ".jsonl":
        documents = [_text_of(row, f"{path}:{n}") for n, row in read_jsonl(path)]
    elif "\n\n" in text.strip().replace("\r\n", "\n"):
        documents = [" ".join(part.split()) for part in text.replace("\r\n", "\n").split("\n\n")]
    else:
        documents = [line.strip() for line in text.splitlines()]
    documents = [d for d in documents if d.strip()]
    if not documents:
        raise InputError(
            f"{path}: no documents; plain text (blank lines between documents) or JSONL with a 'text' is needed"
        )
    return documents


def read_jsonl(path: str | Path) -> list[tuple[int, dict]]:
    """(line number, object) for each line of a JSONL file that is not empty."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not valid JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a JSON object is needed on each line")
        rows.append((number, row))
    return rows


def _text_of(row: dict, where: str) -> str:
    if not isinstance(row.get("text"), str):
        raise InputError(f"{where}: no 'text' (a string) in this line")
    return row["text"]


@dataclass(frozen=True)
class Corpus:
    """One language's documents: those that neurons are found on, and others that the effect is measured on."""

    language: str
    detection: tuple[str, ...]
    held_out: tuple[str, ...]
    origin: str


def own_corpus(language: str) -> Corpus:
    """The project's own parallel documents in one of LANGUAGES."""
    if language not in LANGUAGES:
        raise InputError(
            f"language {language!r} is not in the built-in data, ({', '.join(LANGUAGES)}); use --data for others"
        )
    name = f"documents.{language}.jsonl"
    with resources.as_file(resources.files("mwork_jax") / "data" / name) as path:
        rows = [row for _, row in read_jsonl(path)]
    by_split = {s: tuple(r["text"] for r in rows if r["split"] == s) for s in ("detect", "held_out")}
    return Corpus(language, by_split["detect"], by_split["held_out"], f"mwork-jax data, {name}")
