"""The logit lens by layer, and of which language the tokens are that it shows (Figure 1 of the paper).

Every layer's hidden state goes through the final norm, the head and the soft cap, as if it were the last one. The top
tokens at each position are looked up in a table [vocabulary, columns] of labels, on the device: a gather. Layer 0 is
the embeddings, measured like every other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from mwork_jax.corpus import Batching, Document, Encoded, documents_key, encoded, measured_token_mask, stream_batches
from mwork_jax.errors import InputError, whole_number
from mwork_jax.intervention import Edit, placed
from mwork_jax.lens.vocabulary import LABELLING_VERSION, VocabularyLabels, label_vocabulary
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.checks import check_mask, check_model, check_tokens
from mwork_jax.model.decoder import Decoder, embedded, hidden_states, logits_of
from mwork_jax.model.model import Model
from mwork_jax.model.predictions import LOGIT_ROWS
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.results import (
    DataInfo,
    LabelsInfo,
    LensExample,
    LensResults,
    LensShares,
    LensToken,
    Provenance,
    versions,
)
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache, fingerprint
from mwork_jax.runtime.progress import Progress
from mwork_jax.settings import LensSettings
from mwork_jax.sharding import constrain, fetch, mesh_of, on_mesh_of, put

LENS_VERSION = "lens-2"  # its version: results of another one are not mixed in
_SHORT = Batching(max_tokens=64, tokens_per_batch=512)


@dataclass(frozen=True, eq=False)
class LanguageShares:
    """The share of each label among the tokens that a layer ranks first.

    top_k, top_1: float64 [layers + 1, columns], of the k first tokens and of the first alone, over all positions; rows
    add up to 1. Row 0 is the embeddings. columns: the languages, then the labels for no language. positions: how many
    were counted.
    """

    columns: tuple[str, ...]
    top_k: np.ndarray
    top_1: np.ndarray
    k: int
    positions: int


def language_shares(
    model: Model,
    documents: Iterable[Document | Encoded],
    mask: Edit,
    labels: VocabularyLabels,
    *,
    k: int = 10,
    batching: Batching = _SHORT,
    progress: Callable[[int], None] | None = None,
    each: Callable[[int, np.ndarray], None] | None = None,
) -> LanguageShares:
    """Counts the languages of every layer's top tokens on a stream of documents, with the neurons of `mask` that are 0
    switched off. One program serves every mask; memory does not grow with the number of documents.

    The position of a leading BOS is left out, as in detection. progress is called with the number of documents done;
    each: with every document's number and its own shares among the top k, float64 [layers + 1, columns].
    Raises InputError for labels of another vocabulary, k outside it, or documents that cannot be used.
    """
    check_model(model)
    if not isinstance(labels, VocabularyLabels):
        raise InputError(
            f"labels are a {type(labels).__name__}; VocabularyLabels are needed, as mw.label_vocabulary gives"
        )
    if labels.codes.size != model.config.vocab_size:
        raise InputError(
            f"the labels are of {labels.codes.size} tokens, the model's vocabulary has {model.config.vocab_size}"
        )
    if not 1 <= k <= labels.codes.size:
        raise InputError(f"top {k}: it must be between 1 and the vocabulary's {labels.codes.size}")
    mesh = mesh_of(model.decoder)
    table, off = put(jnp.asarray(labels.table()), mesh, None, None), placed(mask, mesh)
    total, done, positions = 0.0, 0, 0
    for batch in stream_batches(encoded(model, documents, batching.max_tokens, where="prompts"), batching):
        token_mask = measured_token_mask(model, batch.tokens, batch.lengths, include_bos=False)
        flat = np.flatnonzero(token_mask)
        flat_positions = np.zeros(-(-token_mask.size // LOGIT_ROWS) * LOGIT_ROWS, np.int32)
        flat_positions[: flat.size] = flat
        with on_mesh_of(model.decoder):
            tokens = put(batch.tokens, mesh, "batch", "time")
            counts = fetch(_count_labels(model.decoder, tokens, flat_positions, np.int32(flat.size), off, table, k))
        counts = counts.astype(np.float64)
        total, positions = total + counts.sum(axis=1), positions + flat.size
        done += int((batch.documents >= 0).sum())
        for row, document in enumerate(batch.documents.tolist()):
            if each is not None and document >= 0:
                each(document, counts[:, row, 0] / max(1, int(token_mask[row].sum())))
        if progress is not None:
            progress(done)
    shares = np.asarray(total) / positions
    return LanguageShares(labels.columns, shares[:, 0], shares[:, 1], k, positions)


@partial(jax.jit, static_argnames="k")
def _count_labels(
    decoder: Decoder,
    tokens: jax.Array,
    flat_positions: jax.Array,
    counted: jax.Array,
    mask: Edit,
    table: jax.Array,
    k: int,
) -> jax.Array:
    """Label counts over the first `counted` of the flat positions: float32 [layers + 1, batch, 2, columns], of the k
    first tokens (1/k each) and of the first."""
    batch, time = tokens.shape

    def count(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, x.shape[-1])

        def add_chunk(chunk: jax.Array, total: jax.Array) -> jax.Array:
            at = jax.lax.dynamic_slice(flat_positions, (chunk * LOGIT_ROWS,), (LOGIT_ROWS,))
            part = constrain(flat[at], "batch", "hidden")  # of each chunk, every device its own part
            top = jax.lax.top_k(logits_of(decoder, part), k)[1]
            label = table[top]  # [rows, k, columns]
            real = (chunk * LOGIT_ROWS + jnp.arange(LOGIT_ROWS) < counted)[:, None, None]
            both = jnp.stack([label.mean(axis=1), label[:, 0]], axis=1)
            return total.at[at // time].add(jnp.where(real, both, 0.0))

        nothing = jnp.zeros((batch, 2, table.shape[1]))
        return jax.lax.fori_loop(0, (counted + LOGIT_ROWS - 1) // LOGIT_ROWS, add_chunk, nothing)

    _, later = hidden_states(decoder, tokens, mask, observe=lambda record: count(record.hidden))
    return jnp.concatenate([count(embedded(decoder, tokens))[None], later])


def lens_logits(model: Model, tokens: jax.Array | np.ndarray, mask: Edit) -> jax.Array:
    """Every layer's logits: int32 [batch, time] -> float32 [layers + 1, batch, time, vocab]. The last layer's are the
    model's. For short inputs: `language_shares` never holds so much."""
    check_model(model)
    tokens = check_tokens(model.config, tokens)
    check_mask(model.config, mask)
    with on_mesh_of(model.decoder):
        return _lens_logits(model.decoder, tokens, mask)


@jax.jit
def _lens_logits(decoder: Decoder, tokens: jax.Array, mask: Edit) -> jax.Array:
    _, later = hidden_states(decoder, tokens, mask, observe=lambda record: logits_of(decoder, record.hidden))
    return jnp.concatenate([logits_of(decoder, embedded(decoder, tokens))[None], later])


def top_tokens(model: Model, document: Document, mask: Edit, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """What each layer would say next at each position of one document, most likely first: (tokens int32, probabilities
    float32), [layers + 1, time, k] each."""
    check_model(model)
    tokens, most = model.encode(document), model.config.vocab_size
    if tokens.size == 0:
        raise InputError("top tokens: a document of 0 tokens; at least one is needed")
    if not 1 <= whole_number("k", k, 0) <= most:
        raise InputError(f"top tokens: k = {k}; it must be from 1 to {most}, the size of the vocabulary")
    check_mask(model.config, mask)
    with on_mesh_of(model.decoder):
        best, probability = fetch(_top_tokens(model.decoder, tokens[None], mask, k))
    return best[:, 0], probability[:, 0]


@partial(jax.jit, static_argnames="k")
def _top_tokens(decoder: Decoder, tokens: jax.Array, mask: Edit, k: int) -> tuple[jax.Array, jax.Array]:
    """The first k tokens and their probabilities at each layer and position: [layers + 1, batch, time, k] each."""

    def top(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_of(decoder, x)
        values, best = jax.lax.top_k(logits, k)
        return best, jnp.exp(values - jax.nn.logsumexp(logits, axis=-1, keepdims=True))

    _, later = hidden_states(decoder, tokens, mask, observe=lambda record: top(record.hidden))
    first = top(embedded(decoder, tokens))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)


def run_lens(
    model: Model,
    documents: Mapping[str, Sequence[Document | Encoded]],
    origins: Mapping[str, str],
    neurons: Mapping[str, NeuronSet],
    settings: LensSettings,
    out: str | Path,
    *,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> LensResults:
    """The shares for the prompts of each language, on the original model and, where `neurons` has a set for the
    language, with that set switched off. Finished parts are kept in `out/cache`, the labels in `out/labels`.

    documents: {language: its prompts}, cut at `settings.max_tokens`; origins: {language: where they are from}. Raises
    InputError, before any work, for prompts that cannot be used, sets of another shape and a model without a
    tokenizer.
    """
    out = Path(out)
    # Cut here, as the cached shares are found by the tokens that were counted.
    prompts = {lang: list(encoded(model, d, settings.max_tokens, where=origins[lang])) for lang, d in documents.items()}
    for neurons_of in neurons.values():
        NeuronMask.keep_all(model.config).drop(neurons_of)
    languages = tuple(dict.fromkeys((*prompts, *settings.label_languages)))
    labels = kept_labels(model, languages, settings.labeller, out)
    cache = ResultCache(out / CACHE_FOLDER)
    parts = [(lang, off) for lang in prompts for off in (None, *([neurons[lang]] if lang in neurons else []))]
    with progress or Progress() as bar:
        bar.expect(sum(len(prompts[lang]) for lang, _ in parts))
        shares = tuple(
            _load_or_count(model, language, prompts[language], off, labels, settings, cache, bar)
            for language, off in parts
        )
    data = {lang: DataInfo(origins[lang], len(docs), documents_key(docs)) for lang, docs in prompts.items()}
    return LensResults(
        kind="lens",
        provenance=Provenance(model.info, data, settings, versions(), tuple(command)),
        labels=LabelsInfo(labels.columns, labels.counts()),
        shares=shares,
        examples=tuple(_example(model, lang, docs[0], labels, settings) for lang, docs in prompts.items()),
    )


def kept_labels(model: Model, languages: tuple[str, ...], labeller: str, out: Path) -> VocabularyLabels:
    """The labels of the model's vocabulary, from `out/labels` where they were made for the same tokenizer. Raises
    InputError for a model without a tokenizer."""
    if model.tokenizer is None:
        raise InputError(f"{model.source}: no tokenizer, so its tokens have no text to label; add tokenizer.json")
    key = {
        "tokenizer": model.key["tokenizer"],
        "size": model.config.vocab_size,
        "languages": list(languages),
        "labeller": labeller,
        "rules": LABELLING_VERSION,
    }
    path = out / "labels" / f"{fingerprint(key)}.json"
    if path.exists():
        try:
            known = VocabularyLabels.load(path)
            if dict(known.provenance) == key:
                return known
        except InputError:
            pass  # damaged: made again
    made = label_vocabulary(model.tokenizer, model.config.vocab_size, languages, labeller)
    labels = VocabularyLabels(made.languages, made.codes, key)
    labels.save(path)
    return labels


def _load_or_count(
    model: Model,
    language: str,
    documents: Sequence[Encoded],
    off: NeuronSet | None,
    labels: VocabularyLabels,
    settings: LensSettings,
    cache: ResultCache,
    progress: Progress,
) -> LensShares:
    """One language's shares under one mask, from the cache where they are there."""
    key = {
        "evaluator": LENS_VERSION,
        "language": language,
        "model": model.key,
        "documents": documents_key(documents),
        "off": None if off is None else off.fingerprint,
        "labels": fingerprint([labels.columns, labels.codes.tolist()]),
        "top": settings.top,
    }
    progress.describe(f"lens {language}" + ("" if off is None else ", own neurons off"))
    computed = False

    def count() -> dict[str, object]:
        nonlocal computed
        computed = True
        mask = NeuronMask.keep_all(model.config)
        mask = mask if off is None else mask.drop(off)
        batching = Batching(max_tokens=settings.max_tokens, tokens_per_batch=_SHORT.tokens_per_batch)
        leads: dict[int, tuple[float, float]] = {}

        def lead_of(document: int, shares: np.ndarray) -> None:
            leads[document] = english_lead(shares, labels.columns, language)

        with_english = ENGLISH in labels.columns and language != ENGLISH
        each = lead_of if with_english else None
        shares = language_shares(model, documents, mask, labels, k=settings.top, batching=batching, each=each)
        rounded = (np.round(table, 6).tolist() for table in (shares.top_k, shares.top_1))
        tables = dict(zip(("top_k", "top_1"), rounded, strict=True))
        return {"positions": shares.positions, **tables, "english_lead": [leads[i] for i in sorted(leads)]}

    value = cache.get_or_compute(key, count)
    progress.add(len(documents), free=not computed)
    shares = msgspec.convert(
        {"language": language, "neurons_off": 0 if off is None else off.count(), **value}, LensShares
    )
    return shares


def inner_layers(depth: int) -> range:
    """The inner half of a model's layers: from a quarter to three quarters of its depth, layer 0 being the
    embeddings."""
    return range(-(-depth // 4), 3 * depth // 4 + 1)


def english_lead(shares: np.ndarray, columns: Sequence[str], language: str) -> tuple[float, float]:
    """By how much English's share is above that of a prompt's language: its mean over the inner half of the layers, and
    in the last layer. shares: [layers + 1, columns], of one prompt."""
    lead = shares[:, columns.index(ENGLISH)] - shares[:, columns.index(language)]
    inside = inner_layers(len(lead) - 1)
    return round(float(lead[inside.start : inside.stop].mean()), 6), round(float(lead[-1]), 6)


def _example(
    model: Model, language: str, document: Encoded, labels: VocabularyLabels, settings: LensSettings
) -> LensExample:
    """What each layer would predict next along the beginning of a document."""
    tokens = document.tokens[: settings.example_tokens]
    best, probability = top_tokens(model, tokens, NeuronMask.keep_all(model.config), k=1)
    first = model.added_in_front(tokens)  # what is said after a BOS alone is no matter of language
    tokens = tokens[first:]
    best, probability = best[:, first:, 0], probability[:, first:, 0]
    texts = dict(zip(best.ravel().tolist(), _texts(model, best.ravel()), strict=True))
    layers = tuple(
        tuple(
            LensToken(texts[int(t)], labels.of(int(t)), round(float(p), 4)) for t, p in zip(row, chances, strict=True)
        )
        for row, chances in zip(best, probability, strict=True)
    )
    return LensExample(language, tuple(_texts(model, tokens)), layers)


def _texts(model: Model, tokens: np.ndarray) -> Iterator[str]:
    for token in tokens.tolist():
        yield model.tokenizer.decode([token])  # pyright: ignore[reportOptionalMemberAccess]
