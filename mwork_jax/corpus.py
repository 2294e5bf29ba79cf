"""Documents on their way to the device: read from files, tokenized, cut, padded to few shapes, batched.

A shape is a program to compile, so lengths are rounded up to a short list of buckets. In a stream every batch of a
bucket also has the same number of rows; of a list, the last batch has only the rows that are left.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mwork_jax.errors import InputError, InputWarning, whole_number
from mwork_jax.model.buckets import bucket_length
from mwork_jax.model.checks import check_model
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document, byte_count
from mwork_jax.runtime.files import has_rows, read_jsonl, read_rows, read_text

LANGUAGES = ("en", "de", "fr", "es", "ru", "zh", "vi", "th", "ar", "sw")  # of the project's own data set
_WITHOUT_SIGN = ("Cc", "Cf", "Zs", "Zl", "Zp")  # categories of Unicode
_LOST = 0.01  # of all characters: more of those that stand for lost ones are worth a word
_BLANK_LINES = re.compile(r"\n\s*\n")
# An object, or lists of strings or objects, whole or cut; "[1]", "[[link]]" and "{name}" may begin a sentence.
_MARKED_UP = {
    re.compile(r"\s*<(\?xml|!doctype|html|doc|tei|tmx)\b", re.IGNORECASE): "markup",
    re.compile(r"\s*(WEBVTT|1\s*\n\d\d:\d\d:\d\d[,.]\d{3} -->)"): "subtitles",
    re.compile(r"\s*(---\s*\n)?\s*- \w+:\s"): "YAML",
}
_BEGINS_AS_JSON = re.compile(r"""\s*((\[\s*)+["{]|\{\s*")""")


class Encoded(NamedTuple):
    """One tokenized document."""

    tokens: np.ndarray  # int32 [time]
    bytes: int  # UTF-8 bytes that the tokens after the first stand for; 0 where the text is not known


class Batch(NamedTuple):
    """Documents of one bucket. Rows beyond the last document have length 0."""

    tokens: np.ndarray  # int32 [rows, bucket], padded on the right with 0
    lengths: np.ndarray  # int32 [rows]
    documents: np.ndarray  # int32 [rows], the document's index in the stream, -1 for an empty row


@dataclass(frozen=True)
class Batching:
    """How documents become batches. tokens_per_batch bounds rows x bucket; max_tokens cuts longer documents.

    Raises InputError for max_tokens < 2 (nothing would be predicted) and tokens_per_batch < 1.
    """

    max_tokens: int = 512
    tokens_per_batch: int = 1024

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 2), ("tokens_per_batch", 1)):
            whole_number(f"batching: {name}", getattr(self, name), least)

    def rows(self, bucket: int, multiple: int = 1) -> int:
        return max(1, self.tokens_per_batch // (bucket * multiple)) * multiple


def encoded(
    model: Model, documents: Iterable[Document | Encoded], max_tokens: int, *, where: str = "corpus"
) -> Iterator[Encoded]:
    """Tokenizes a stream of documents, cut at `max_tokens` and at the model's context. What is encoded already passes
    through.

    Raises InputError for a document of fewer than two tokens, for an empty stream, and for one document instead of a
    list.
    """
    if isinstance(documents, str | bytes | Encoded):
        raise InputError(f"{where}: documents come as a list, also when there is only one")
    if isinstance(documents, Mapping):
        names = ", ".join(map(str, list(documents)[:3]))
        raise InputError(f"{where}: a table ({names}), where documents are needed; take one language's")
    check_model(model)
    index, longest = -1, min(max_tokens, model.config.max_length)
    for index, document in enumerate(documents):
        if isinstance(document, Encoded):
            yield document if document.tokens.size <= longest else Encoded(document.tokens[:longest], 0)
            continue
        name = f"{where}: document {index + 1}"
        whole = model.encode(document, where=name)
        if isinstance(document, str) and not document.strip() and whole.size < 2:
            raise InputError(f"{name} is empty; leave it out")
        if whole.size < 2:
            raise InputError(f"{name} has {whole.size} token{'s' * (whole.size != 1)}; at least two are needed")
        cut = whole[:longest]
        if model.added_in_front(cut) == cut.size:
            raise InputError(f"{name} is only the {cut.size} tokens that the tokenizer puts in front; more are needed")
        yield Encoded(cut, _predicted_bytes(model, document, whole, longest))
    if index < 0:
        raise InputError(f"{where}: no documents; at least one is needed")


def _predicted_bytes(model: Model, document: Document, whole: np.ndarray, max_tokens: int) -> int:
    """UTF-8 bytes of what the tokens after the first stand for; 0 for token arrays, whose text is not known."""
    if not isinstance(document, str) or model.tokenizer is None:
        return 0
    cut = whole.size > max_tokens
    size = byte_count(model.tokenizer, whole[:max_tokens], special=False) if cut else len(document.encode())
    return size - (0 if model.added_in_front(whole) else byte_count(model.tokenizer, whole[:1], special=True))


def stream_batches(documents: Iterable[Encoded], batching: Batching, multiple: int = 1) -> Iterator[Batch]:
    """Batches of a stream, each as soon as its bucket is full; what is left over at the end comes last. Every batch has
    a multiple of `multiple` rows, for so many devices that share it.

    Holds at most one batch per bucket, however many documents come, and every batch of a bucket has the same shape.
    """
    waiting: dict[int, list[tuple[int, np.ndarray]]] = {}
    for index, document in enumerate(documents):
        bucket = bucket_length(document.tokens.size, batching.max_tokens)
        rows = waiting.setdefault(bucket, [])
        rows.append((index, document.tokens))
        if len(rows) == batching.rows(bucket, multiple):
            yield _pad(waiting.pop(bucket), bucket, batching.rows(bucket, multiple))
    # From the longest down, shorter documents fill the rows that longer ones leave empty: fewer batches in all.
    left = [(bucket, row) for bucket in sorted(waiting, reverse=True) for row in waiting[bucket]]
    while left:
        bucket = left[0][0]
        size = batching.rows(bucket, multiple)
        yield _pad([row for _, row in left[:size]], bucket, size)
        left = left[size:]


def list_batches(documents: Sequence[Encoded], batching: Batching) -> Iterator[Batch]:
    """Batches of a list of documents, sorted by length, so that little is padded and no row is empty."""
    order = sorted(range(len(documents)), key=lambda i: -documents[i].tokens.size)
    while order:
        bucket = bucket_length(documents[order[0]].tokens.size, batching.max_tokens)
        size = min(len(order), batching.rows(bucket))
        yield _pad([(i, documents[i].tokens) for i in order[:size]], bucket, size)
        order = order[size:]


def _pad(documents: list[tuple[int, np.ndarray]], bucket: int, rows: int) -> Batch:
    tokens = np.zeros((rows, bucket), np.int32)
    lengths, indices = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
    for row, (index, document) in enumerate(documents):
        tokens[row, : document.size] = document
        lengths[row], indices[row] = document.size, index
    return Batch(tokens, lengths, indices)


def measured_token_mask(model: Model, tokens: np.ndarray, lengths: np.ndarray, include_bos: bool) -> np.ndarray:
    """Which tokens of a batch are measured: float32 [batch, time], 1 for real tokens, 0 for padding and, without
    `include_bos`, for a BOS that begins a document, with what else the tokenizer puts in front of a text.

    tokens: int32 [batch, time], padded on the right; lengths: int32 [batch].
    """
    token_mask = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
    if not include_bos:
        for row, document in enumerate(tokens):
            token_mask[row, : model.added_in_front(document)] = False
    return token_mask.astype(np.float32)


def documents_key(documents: Iterable[Encoded]) -> str:
    """A short hash over the tokens of documents in their order, and the bytes that they stand for; for cache keys. One
    document is hashed after the other, so nothing but the documents themselves is in memory."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.tokens.size} {document.bytes}\n".encode())
        digest.update(np.ascontiguousarray(document.tokens, "<i4").tobytes())
    return digest.hexdigest()[:32]


def read_corpus(path: str | Path) -> list[str]:
    """The documents of a file, without empty ones.

    `.jsonl`, `.ndjson`, `.jsonlines`: one object per line with a "text"; `.json`: a list of them, or of strings;
    `.csv`, `.tsv`: a column "text". Anything else: plain text, documents separated by blank lines (spaces and tabs may
    stand in them), or one per line where there is no blank line. Lines end in LF, CRLF or CR, never in another
    separator, such as a form feed or U+2028. Raises InputError where the file is missing, not UTF-8, not of that form,
    plain text that begins as JSON does, or without a document.
    """
    return [text for text, _ in _documents(path)]


def _documents(path: str | Path) -> list[tuple[str, object]]:
    """The documents of a file with their "id", None where they have none."""
    documents: list[tuple[str, object]]
    if has_rows(path):
        documents = [(_text_of(row, where), row.get("id")) for where, row in read_rows(path)]
    else:
        documents = [(text, None) for text in _plain_documents(path)]
    documents = [(text, name) for text, name in documents if not _is_blank(text)]
    if not documents:
        raise InputError(
            f"{path}: no documents; plain text (blank lines between documents) or JSONL with a 'text' is needed"
        )
    lost, whole = (sum(count(text) for text, _ in documents) for count in (_lost, len))
    if lost > _LOST * whole:
        line = f"{path}: {lost} of {whole} characters are U+FFFD, in whose place a conversion has lost others"
        warnings.warn(line, InputWarning, stacklevel=3)
    return documents


def _lost(text: str) -> int:
    return text.count("\ufffd")


def warn_of_repeats(detection: Mapping[str, Sequence[str]], held_out: Mapping[str, Sequence[str]]) -> None:
    """Warns where two languages have mostly the same documents, where a language's are mostly repeats, and where it is
    measured on documents that its neurons were detected on. {language: documents} each."""
    different = {language: set(texts) for language, texts in detection.items()}
    lines = [
        f"{one} and {other}: {len(own & theirs)} documents are the same; is one file given for both?"
        for (one, own), (other, theirs) in combinations(different.items(), 2)
        if 2 * len(own & theirs) > min(len(own), len(theirs))
    ]
    for language, texts in detection.items():
        if 0 < 2 * len(different[language]) <= len(texts):
            lines.append(f"{language}: {len(texts)} documents, of which {len(different[language])} are different")
        if both := sum(text in different[language] for text in held_out.get(language, ())):
            lines.append(f"{language}: {both} held-out documents are among those that neurons are detected on")
    for line in lines:
        warnings.warn(line, InputWarning, stacklevel=3)


def _plain_documents(path: str | Path) -> list[str]:
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if _BEGINS_AS_JSON.match(text):
        raise InputError(f"{path}: JSON, where plain text is expected; name it .jsonl (an object a line) or .json")
    for begins, kind in _MARKED_UP.items():
        if begins.match(text):
            raise InputError(f"{path}: {kind}, where plain text is expected; take the text out of it")
    if _BLANK_LINES.search(text.strip()):
        return [" ".join(part.split()) for part in _BLANK_LINES.split(text)]
    return [line.strip() for line in text.split("\n")]


def _is_blank(text: str) -> bool:
    """Whether a text has nothing but spaces and characters without a sign, such as U+200B or what ends files of DOS."""
    return not text.strip() or all(unicodedata.category(c) in _WITHOUT_SIGN for c in text)


def _text_of(row: dict, where: str) -> str:
    if not isinstance(row.get("text"), str):
        if "text" in row:
            raise InputError(f"{where}: 'text' is {row['text']!r:.60}; a string is needed")
        others = ", ".join(f"{name!r:.40}" for name in list(row)[:5])
        raise InputError(f"{where}: no 'text' (a string) in this row; it has {others or 'nothing'}")
    return row["text"]


# What the origin of the project's own documents and questions begins with.
BUILT_IN = "mwork-jax data"


@dataclass(frozen=True)
class Corpus:
    """One language's documents: those that neurons are detected on, and others that effects are measured on."""

    language: str
    detection: tuple[str, ...]
    held_out: tuple[str, ...]
    origin: str
    held_out_ids: tuple[str, ...] = ()  # the same for a document and its translations; () where none are translations

    @property
    def clusters(self) -> tuple[str, ...]:
        """One id for each held-out document; documents with one id are not independent across languages."""
        return self.held_out_ids or tuple(f"{self.language}-{n}" for n in range(1, len(self.held_out) + 1))


def corpus_of_file(language: str, path: str | Path, detection: int) -> Corpus:
    """A file's documents: the first `detection` find neurons, the others are there to measure on. An "id" that a
    document has in several languages says that they are translations of each other. Raises InputError as
    `read_corpus`."""
    documents = _documents(path)
    texts, ids = [text for text, _ in documents], tuple(name for _, name in documents if isinstance(name, str))
    ids = ids if len(ids) == len(texts) else ()
    return Corpus(language, tuple(texts[:detection]), tuple(texts[detection:]), str(path), ids[detection:])


def own_corpus(language: str) -> Corpus:
    """The project's own parallel documents in one of LANGUAGES."""
    rows = own_rows("documents", language)
    by_split = {s: [row for row in rows if row["split"] == s] for s in ("detect", "held_out")}
    texts = {split: tuple(row["text"] for row in of_split) for split, of_split in by_split.items()}
    ids = tuple(row["id"] for row in by_split["held_out"])
    origin = f"{BUILT_IN}, documents.{language}.jsonl"
    return Corpus(language, texts["detect"], texts["held_out"], origin, ids)


def own_rows(kind: str, language: str) -> list[dict]:
    """The project's own "documents", "knowledge" or "arithmetic" in one of LANGUAGES, as data/README.md describes."""
    if language not in LANGUAGES:
        raise InputError(
            f"language {language!r} is not in the built-in data ({', '.join(LANGUAGES)}); "
            "your own are LANG=FILE of --data or --corpus, whichever the command has"
        )
    with resources.as_file(resources.files("mwork_jax") / "data" / f"{kind}.{language}.jsonl") as path:
        return [row for _, row in read_jsonl(path)]
