"""Steering vectors: for each language and layer, a direction of the residual stream that leads towards the language.

Three methods of the field: the difference of means (DiffMean), which steering benchmarks find hard to beat; a linear
probe; and the first principal component. The first needs the mean residual stream alone, which `NeuronScores` has; the
others need its covariance too, which is streamed here: memory does not grow with the number of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.corpus import Batching, Encoded, encoded, measured_token_mask, stream_batches
from mwork_jax.detect.activations import RESIDUAL
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder, LayerRecord, hidden_states
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import NeuronMask
from mwork_jax.sharding import fetch, mesh_of, on_mesh_of, parts_of, put

METHODS = ("diffmean", "probe", "pca")
_SHRINKAGE = 0.01  # of a covariance towards a multiple of the identity, where a probe inverts it


@dataclass(frozen=True, eq=False)
class ResidualMoments:
    """Of the residual stream that leaves each layer, over the tokens of a language: mean float64 [layers, hidden],
    covariance float64 [layers, hidden, hidden]."""

    mean: np.ndarray
    covariance: np.ndarray


def language_vectors(
    model: Model | None,
    documents: Mapping[str, Iterable[Document | Encoded]] | Mapping[str, NeuronScores],
    method: str = "diffmean",
    *,
    include_bos: bool = False,
    batching: Batching = Batching(tokens_per_batch=2048),
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """A steering vector for each language and layer: {language: float32 [layers, hidden]}, for `Intervention.steer`.

    documents: {language: str or int32 [time] each}, of two languages at least. Every language is compared with the
    others, each of which counts alike. With d the mean residual stream of the language minus that of the others:

    diffmean: d itself. NeuronScores may stand in place of documents, and no model is needed then.
    probe: the weights of a linear classifier of tokens, this language or another, fitted by least squares (Fisher's
    discriminant, covariance shrunk by 1 %).
    pca: the first principal component of the tokens of the language and of the others.

    The vectors of the last two are as long as d is in their direction, and point as it does: with strength 1, all move
    the mean of the others as far along the vector as the language's own mean is. include_bos: count the BOS position, a
    sink that swamps the means. progress: called with the number of documents done. Raises InputError for fewer than
    two languages, an unknown method, scores without means, and documents that cannot be used.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r:.40} is not one of {', '.join(METHODS)}")
    if not isinstance(documents, Mapping) or len(documents) < 2:
        raise InputError("language_vectors: {language: documents} of two languages at least is needed")
    scored = {language: own for language, own in documents.items() if isinstance(own, NeuronScores)}
    if scored and (method != "diffmean" or len(scored) < len(documents)):
        raise InputError(
            "language_vectors: scores hold means alone, for diffmean of all languages; give documents of each"
        )
    if scored:
        means = {language: _scored_mean(language, scores) for language, scores in scored.items()}
        if len({mean.shape for mean in means.values()}) > 1:
            raise InputError("language_vectors: the scores are of models of different shapes")
        return {language: difference.astype(np.float32) for language, difference in _differences(means).items()}
    if model is None:
        raise InputError("language_vectors: documents need a model to read them")
    moments, before = {}, 0
    for language, own in documents.items():
        assert not isinstance(own, NeuronScores)
        done = None if progress is None else partial(_add, progress, before)
        moments[language], count = _moments(model, own, language, method, include_bos, batching, done)
        before += count
    return _vectors(moments, method)


def _add(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _scored_mean(language: str, scores: NeuronScores) -> np.ndarray:
    if not scores.means:
        raise InputError(f"the scores of {language!r:.40} have no means; make them anew with `mwork detect`")
    return scores.means[RESIDUAL].astype(np.float64)


def _differences(means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each language's mean minus the mean of the others' means."""
    total, others = sum(means.values()), len(means) - 1
    return {language: mean - (total - mean) / others for language, mean in means.items()}


def _vectors(moments: Mapping[str, ResidualMoments], method: str) -> dict[str, np.ndarray]:
    differences = _differences({language: own.mean for language, own in moments.items()})
    if method == "diffmean":
        return {language: difference.astype(np.float32) for language, difference in differences.items()}
    find = _probe if method == "probe" else _principal
    vectors = {}
    for language, difference in differences.items():
        others = [own for name, own in moments.items() if name != language]
        layers = [
            _along(find(moments[language], others, layer, difference[layer]), difference[layer])
            for layer in range(len(difference))
        ]
        vectors[language] = np.stack(layers).astype(np.float32)
    return vectors


def _along(direction: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """The part of a difference that lies along a direction."""
    return direction * (direction @ difference) / (direction @ direction)


def _probe(own: ResidualMoments, others: list[ResidualMoments], layer: int, difference: np.ndarray) -> np.ndarray:
    """Fisher's discriminant, which least squares on labels of +1 and -1 gives too: [hidden]."""
    within = (own.covariance[layer] + _pooled(others, layer)[1]) / 2
    size = len(within)
    shrunk = (1 - _SHRINKAGE) * within + _SHRINKAGE * np.trace(within) / size * np.eye(size)
    from scipy import linalg  # slow to import, and most of the package needs none

    return linalg.solve(shrunk, difference, assume_a="pos")


def _principal(own: ResidualMoments, others: list[ResidualMoments], layer: int, difference: np.ndarray) -> np.ndarray:
    """The first principal component of this language and the others, each half of the tokens: [hidden]."""
    whole = (own.covariance[layer] + _pooled(others, layer)[1]) / 2 + np.outer(difference, difference) / 4
    from scipy import linalg

    return linalg.eigh(whole, subset_by_index=[len(whole) - 1, len(whole) - 1])[1][:, 0]


def _pooled(others: list[ResidualMoments], layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of several languages together, each counting alike."""
    means = np.stack([own.mean[layer] for own in others])
    between = means - means.mean(axis=0)
    within = sum(own.covariance[layer] for own in others) / len(others)
    return means.mean(axis=0), within + between.T @ between / len(others)


def _moments(
    model: Model,
    documents: Iterable[Document | Encoded],
    language: str,
    method: str,
    include_bos: bool,
    batching: Batching,
    progress: Callable[[int], None] | None,
) -> tuple[ResidualMoments, int]:
    """The moments of one language's documents, and how many there are. Without covariance where the method does not
    need it."""
    mesh, squares = mesh_of(model.decoder), method != "diffmean"
    center: jax.Array | None = None
    total, count, counted = None, 0, 0
    ready = encoded(model, documents, batching.max_tokens, where=f"the documents of {language}")
    for batch in stream_batches(ready, batching, multiple=parts_of(mesh, "batch")):
        token_mask = measured_token_mask(model, batch.tokens, batch.lengths, include_bos)
        with on_mesh_of(model.decoder):
            args = put((batch.tokens, token_mask), mesh, "batch", "time")
            if center is None:
                # About where the mean is: a covariance from raw squares would lose its digits to the mean.
                nothing = jnp.zeros((model.config.num_layers, model.config.hidden_size), jnp.float32)
                center = _sums(model.decoder, *args, nothing, False)[0] / max(float(token_mask.sum()), 1.0)
            added = _sums(model.decoder, *args, center, squares)
            total = added if total is None else jax.tree.map(jnp.add, total, added)
        count += int((batch.documents >= 0).sum())
        counted += int(token_mask.sum())
        if progress is not None:
            progress(count)
    if total is None or center is None:
        raise InputError(f"language_vectors: no documents of {language}")
    sums, products, middle = (np.asarray(each, np.float64) for each in fetch((*total, center)))
    shift = sums / counted
    mean = middle + shift
    covariance = products / counted - (shift[:, :, None] * shift[:, None, :] if squares else 0)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError(f"{model.source}: the residual stream is not finite; are the model's weights sound?")
    return ResidualMoments(mean, covariance), count


@partial(jax.jit, static_argnums=4)
def _sums(
    decoder: Decoder, tokens: jax.Array, token_mask: jax.Array, center: jax.Array, squares: bool
) -> tuple[jax.Array, jax.Array]:
    """Over the tokens that count, of the residual stream minus `center` [layers, hidden]: its sum [layers, hidden] and,
    with `squares`, the sum of its outer products [layers, hidden, hidden], else [layers, 0, 0]."""
    precision = jax.lax.Precision.HIGHEST

    def observe(record: LayerRecord) -> jax.Array:
        return record.hidden

    _, hidden = hidden_states(decoder, tokens, NeuronMask.keep_all(decoder.config), observe=observe)

    def of_layer(args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, middle = args
        centred = (x - middle) * token_mask[:, :, None]
        outer = jnp.einsum("btm,btn->mn", centred, centred, precision=precision) if squares else jnp.zeros((0, 0))
        return centred.sum(axis=(0, 1)), outer

    return jax.lax.map(of_layer, (hidden, center))
