"""What a neuron reads and writes: the contexts in which it acts most, by language, and the tokens that it promotes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.corpus import Batching, Document, Encoded, documents_key, encoded
from mwork_jax.detect.contexts import FFN, NeuronAt, StrongestTokens, neurons_at, strongest_tokens
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError, whole_number
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.int8 import FACTOR
from mwork_jax.model.model import Model
from mwork_jax.model.operations import product
from mwork_jax.neurons import FFN_GROUPS, GROUPS, NeuronSet
from mwork_jax.results import (
    DataInfo,
    NeuronActivity,
    NeuronContext,
    NeuronReading,
    NeuronResults,
    NeuronSetInfo,
    Provenance,
    TokenWeight,
    versions,
)
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache
from mwork_jax.runtime.progress import Progress
from mwork_jax.select.strongest import strongest_neurons
from mwork_jax.settings import NeuronSettings
from mwork_jax.sharding import constrain, fetch, on_mesh_of

CONTEXTS_VERSION = "contexts-1"  # of the code that finds contexts: results of another one are not mixed in
_COLUMNS = 32  # neurons whose tokens are looked for at a time


def neuron_contexts(
    model: Model,
    documents: Mapping[str, Sequence[Document | Encoded]],
    neurons: NeuronSet,
    *,
    contexts: int = 5,
    tokens: int = 10,
    before: int = 16,
    after: int = 8,
    batching: Batching = Batching(),
    progress: Callable[[int], None] | None = None,
) -> tuple[NeuronReading, ...]:
    """What every neuron of a set reads and writes, by site (attn_q, attn_k, attn_v, feed-forward), layer and index.

    documents: {language: str or int32 [time] each}. For each language the `contexts` tokens with the largest
    activations, with `before` and `after` tokens around them, and the share of tokens at which the neuron is active
    (`mwork_jax.detect.contexts` defines both); for feed-forward neurons the `tokens` that they promote and suppress
    most. On the device memory does not grow with the documents, which are read twice: once all of them by the model,
    then those that a context is cut out of. `importance` is empty: it is of the sets that `run_neurons` is given.
    progress is called with the number of a language's documents done.

    Raises InputError for a model without a tokenizer, an empty set, one of another model, documents that cannot be
    used, and more tokens than the vocabulary has.
    """
    _check(model, tokens)
    if not isinstance(documents, Mapping) or not documents:
        raise InputError("neuron_contexts: {language: documents} is needed, of one language at least")
    by_language = {}
    for language, own in documents.items():
        if not isinstance(own, Sequence) or isinstance(own, str | bytes):
            raise InputError(f"the documents of {language!r:.40} are read twice; a list of them is needed")
        named = encoded(model, own, batching.max_tokens, where=f"the documents of {language}")
        found = strongest_tokens(model, named, neurons, contexts, batching=batching, progress=progress)
        by_language[language] = _activities(model, own, found, batching.max_tokens, before, after)
    return _readings(model, neurons, by_language, {}, tokens)


def run_neurons(
    model: Model,
    documents: Mapping[str, Sequence[Document | Encoded]],
    origins: Mapping[str, str],
    neurons: Mapping[str, NeuronSet],
    scores: Mapping[str, NeuronScores],
    settings: NeuronSettings,
    out: str | Path,
    *,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> NeuronResults:
    """Reads the strongest neurons of each language's set (`settings.languages`) on the documents of every language.
    What is found on one language is kept in `out/cache`, so that an interrupted command goes on from there.

    documents, origins: {language: its documents, where they are from}; neurons, scores: {language: its set, its
    scores}; scores may be missing for sets that are small. Raises InputError as `neuron_contexts`, and where no neuron
    is left to read.
    """
    _check(model, settings.tokens)
    wanted = {
        lang: (_strongest(lang, neurons[lang], scores.get(lang), settings), scores.get(lang))
        for lang in settings.languages
    }
    together = _union([own for own, _ in wanted.values()])
    if not together.count():
        raise InputError(f"no neurons of {', '.join(settings.groups)} in the sets of {', '.join(wanted)}")
    ready = {lang: list(encoded(model, d, settings.max_tokens, where=origins[lang])) for lang, d in documents.items()}
    cache = ResultCache(Path(out) / CACHE_FOLDER)
    by_language = {}
    with progress or Progress() as bar:
        bar.expect(sum(map(len, ready.values())))
        for lang, own in ready.items():
            found = _load_or_find(model, lang, own, together, settings, cache, bar)
            by_language[lang] = _activities(model, own, found, settings.max_tokens, settings.before, settings.after)
        bar.describe("tokens")
        readings = _readings(model, together, by_language, wanted, settings.tokens)
    data = {lang: DataInfo(origins[lang], len(docs), documents_key(docs)) for lang, docs in ready.items()}
    return NeuronResults(
        kind="neurons",
        provenance=Provenance(model.info, data, settings, versions(), tuple(command)),
        neurons={lang: NeuronSetInfo.of(neurons[lang]) for lang in wanted},
        readings=readings,
    )


def _check(model: Model, tokens: int) -> None:
    if model.tokenizer is None:
        raise InputError(f"{model.source}: no tokenizer, so contexts have no text; add tokenizer.json")
    if whole_number("tokens", tokens, 1) > model.config.vocab_size:
        raise InputError(f"tokens is {tokens}; the vocabulary has {model.config.vocab_size}")


def _strongest(language: str, neurons: NeuronSet, scores: NeuronScores | None, settings: NeuronSettings) -> NeuronSet:
    own = neurons.in_groups(*settings.groups)
    try:
        if settings.layers:
            own = _union([own.in_layers(layer, layer + 1) for layer in settings.layers])
        return strongest_neurons(own, scores, settings.top)
    except InputError as error:
        raise InputError(f"the neurons of {language}: {error}") from None


def _union(sets: Sequence[NeuronSet]) -> NeuronSet:
    whole = sets[0]
    for one in sets[1:]:
        whole = whole | one
    return whole


def _load_or_find(
    model: Model,
    language: str,
    documents: Sequence[Encoded],
    neurons: NeuronSet,
    settings: NeuronSettings,
    cache: ResultCache,
    progress: Progress,
) -> StrongestTokens:
    """The strongest tokens of one language, from the cache where they are there."""
    key = {
        "evaluator": CONTEXTS_VERSION,
        "model": model.key,
        "documents": documents_key(documents),
        "neurons": neurons.fingerprint,
        "contexts": settings.contexts,
    }
    progress.describe(f"contexts {language}")
    computed = False

    def find() -> dict[str, object]:
        nonlocal computed
        computed = True
        batching = Batching(max_tokens=settings.max_tokens)
        callback = progress.callback(1.0)
        return _as_json(
            strongest_tokens(model, documents, neurons, settings.contexts, batching=batching, progress=callback)
        )

    value = cache.get_or_compute(key, find)
    if not computed:
        progress.add(len(documents), free=True)
    return _from_json(value, neurons_at(neurons))


def _as_json(found: StrongestTokens) -> dict[str, object]:
    """For the cache; what is not there, -1 and NaN, is None."""
    values = [[None if d < 0 else float(v) for v, d in zip(*row, strict=True)] for row in zip(
        found.values, found.documents, strict=True)]  # fmt: skip
    return {
        "values": values,
        "documents": found.documents.tolist(),
        "positions": found.positions.tolist(),
        "active": [None if np.isnan(share) else float(share) for share in found.active],
        "tokens": found.tokens,
    }


def _from_json(value: Mapping[str, Any], neurons: tuple[NeuronAt, ...]) -> StrongestTokens:
    values = [[-np.inf if v is None else v for v in row] for row in value["values"]]
    active = [np.nan if share is None else share for share in value["active"]]
    return StrongestTokens(
        neurons,
        np.asarray(values, np.float32),
        np.asarray(value["documents"], np.int32),
        np.asarray(value["positions"], np.int32),
        np.asarray(active, np.float64),
        value["tokens"],
    )


def _activities(
    model: Model,
    documents: Sequence[Document | Encoded],
    found: StrongestTokens,
    max_tokens: int,
    before: int,
    after: int,
) -> list[NeuronActivity]:
    """What each neuron does on one language's documents. Only documents with a context in them are looked at again."""
    tokens = {}
    for document in np.unique(found.documents[found.documents >= 0]).tolist():
        (one,) = encoded(model, [documents[document]], max_tokens)
        tokens[document] = one.tokens
    activities = []
    for i in range(len(found.neurons)):
        contexts = []
        for value, document, position in zip(found.values[i], found.documents[i], found.positions[i], strict=True):
            if document >= 0:
                parts = marked_text(model, tokens[int(document)], int(position), before, after)
                contexts.append(NeuronContext(float(value), int(document), int(position), *parts))
        share = float(found.active[i])
        activities.append(NeuronActivity(None if np.isnan(share) else share, tuple(contexts)))
    return activities


def marked_text(model: Model, tokens: np.ndarray, position: int, before: int, after: int) -> tuple[str, str, str]:
    """The text around a token, the token's own, and what follows: of at most `before` and `after` other tokens. What
    the tokenizer puts in front of a document is left out. A token that is a part of a character is marked as the whole
    character, since a part cannot be shown."""
    first = max(position - before, min(position, model.added_in_front(tokens)))
    tokenizer: Any = model.tokenizer
    ends = (position, position + 1, min(position + 1 + after, tokens.size))
    left, through, whole = (tokenizer.decode(tokens[first:end].tolist()) for end in ends)
    start = _common(left, whole)
    end = max(_common(through, whole), min(start + 1, len(whole)))
    return whole[:start], whole[start:end], whole[end:]


def _common(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _readings(
    model: Model,
    neurons: NeuronSet,
    by_language: Mapping[str, Sequence[NeuronActivity]],
    wanted: Mapping[str, tuple[NeuronSet, NeuronScores | None]],
    count: int,
) -> tuple[NeuronReading, ...]:
    """wanted: {language: (the neurons of its set that are read, its scores)}."""
    chosen = neurons_at(neurons)
    tokens = _tokens_of(model, chosen, count)
    readings = []
    for i, at in enumerate(chosen):
        groups = tuple(
            g for g in (FFN_GROUPS if at.site == FFN else (at.site,)) if neurons.groups[g][at.layer, at.index]
        )
        importance = {
            lang: None if scores is None else float(scores.mean[groups[0]][at.layer, at.index])
            for lang, (own, scores) in wanted.items()
            if any(own.groups[g][at.layer, at.index] for g in groups)
        }
        activities = {lang: own[i] for lang, own in by_language.items()}
        readings.append(NeuronReading(groups, at.layer, at.index, importance, *tokens[i], activities))
    return tuple(readings)


_Tokens = tuple[tuple[TokenWeight, ...] | None, tuple[TokenWeight, ...] | None]


def _tokens_of(model: Model, chosen: Sequence[NeuronAt], count: int) -> list[_Tokens]:
    """The tokens that each neuron promotes and suppresses most; None for queries, keys and values."""
    found: list[_Tokens] = [(None, None)] * len(chosen)
    ffn = [i for i, at in enumerate(chosen) if at.site == FFN]
    for begin in range(0, len(ffn), _COLUMNS):
        part = ffn[begin : begin + _COLUMNS]
        places = np.zeros((_COLUMNS, 2), np.int32)  # what fills it up is computed, and left out
        places[: len(part)] = [(chosen[i].layer, chosen[i].index) for i in part]
        with on_mesh_of(model.decoder):
            best, weights = fetch(_extreme_tokens(model.decoder, places[:, 0], places[:, 1], count))
        for i, (promoted, suppressed), (raised, lowered) in zip(part, best, weights, strict=False):
            found[i] = tuple(_weights(model, promoted, raised)), tuple(_weights(model, suppressed, lowered))
    return found


def _weights(model: Model, tokens: np.ndarray, weights: np.ndarray) -> Iterator[TokenWeight]:
    tokenizer: Any = model.tokenizer
    for token, weight in zip(tokens.tolist(), weights.tolist(), strict=True):
        yield TokenWeight(tokenizer.decode([token]), weight)


@partial(jax.jit, static_argnames="count")
def _extreme_tokens(decoder: Decoder, layers: jax.Array, indices: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The tokens that the columns of `down` at layers and indices, int32 [n], add most to, and those that they take
    most from: (tokens int32, what is added to their logits float32), [n, 2, count] each."""
    logits = column_logits(decoder, layers, indices)
    (raised, most), (lowered, least) = jax.lax.top_k(logits, count), jax.lax.top_k(-logits, count)
    return jnp.stack([most, least], axis=1), jnp.stack([raised, -lowered], axis=1)


def column_logits(decoder: Decoder, layers: jax.Array, indices: jax.Array) -> jax.Array:
    """What a unit of activation of feed-forward neurons adds to the logits directly, without the later layers and up to
    the lengths that norms divide by: [n] -> float32 [n, vocab].

    The column of the down projection goes through the weight of the norm behind the block, where there is one, then
    through the final norm's weight and the head. A norm that takes the mean away takes it from the column too.
    """
    config, down = decoder.config, decoder.layers.down[...]
    size = config.intermediate_size
    at = (layers, indices // size) if config.num_experts else (layers,)
    columns = down[*at, :, indices % size].astype(jnp.float32)
    if decoder.int8:
        columns = columns * getattr(decoder.layers, f"down{FACTOR}")[...][*at, :, 0]
    columns = constrain(columns, "positions", "hidden")
    scales: Iterable[jax.Array] = (decoder.final_norm[...][None],)
    if config.post_norms:
        scales = (decoder.layers.ffn_post_norm[...][layers], *scales)
    for scale in scales:
        if config.norm == "layer":
            columns = columns - columns.mean(axis=-1, keepdims=True)
        columns = columns * (scale + config.norm_offset)
    columns = columns * (config.residual_scale * config.logit_scale)
    head = decoder.embed[...] if decoder.head is None else decoder.head[...]
    return product("nm,vm->nv", columns, head)


def named_groups(groups: Iterable[str]) -> tuple[str, ...]:
    """The groups, each once, in the order of GROUPS. Raises InputError for a name that is none."""
    groups = list(groups)
    for group in groups:
        if group not in GROUPS:
            raise InputError(f"{group!r:.40} is not a neuron group; the groups are {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if group in groups)
