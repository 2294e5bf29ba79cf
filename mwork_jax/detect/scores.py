"""Scores of every neuron on a stream of documents of one language: computed, saved, loaded.

What is kept of the stream are order statistics, so any threshold can be applied afterwards, and memory does not grow
with the number of documents.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from mwork_jax.corpus import Batching, Encoded, documents_key, encoded, measured_token_mask, stream_batches
from mwork_jax.detect.importance import importance_and_activity
from mwork_jax.detect.order_statistics import OrderStatistics, merged, with_batch
from mwork_jax.errors import InputError, InputWarning, whole_number
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import GROUPS
from mwork_jax.runtime.cache import fingerprint
from mwork_jax.runtime.distributed import everyone
from mwork_jax.runtime.files import checksum_of, parse_json, write_tensors
from mwork_jax.runtime.progress import Progress
from mwork_jax.sharding import DATA, fetch, mesh_of, on_mesh_of, put, size_of

_FORMAT = "mwork-neuron-scores-2"
_OLD_FORMAT = "mwork-neuron-scores-1"
DETECTOR_VERSION = "importance-3"  # of the code that computes scores: those of another version are computed again
DEFAULT_KEPT = 8  # weakest documents that are remembered per neuron
_MOST_KEPT = 1 << 20  # far more than a device has room for
DETECTION_COST = 1.5  # time to score a document, in units of evaluating one; for the time left
_TABLES = ("lowest", "worst_rank", "mean")
_ACTIVITY = ("active", "activation")


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """Scores of every neuron over a stream of documents of one language.

    Per group, with n = `kept` documents at most remembered per neuron:
    lowest [n, layers, width], float32: the n smallest importances over the documents, ascending;
    worst_rank [n, layers, width], int32: the n worst ranks within layer and group, descending, 0 being a document's
    most important neuron; mean [layers, width], float32.
    Of the feed-forward, over the tokens that count in the norms: active [layers, f], float32, the share with
    act(gate) > 0 (what LAPE needs); activation [layers, f], float32, the mean of act(gate) * up.
    A neuron is activated for every document where `lowest[0] >= epsilon`, or `worst_rank[0] < K`; for all but m of
    them where that holds for entry m.
    """

    lowest: Mapping[str, np.ndarray]
    worst_rank: Mapping[str, np.ndarray]
    mean: Mapping[str, np.ndarray]
    active: np.ndarray
    activation: np.ndarray
    documents: int
    tokens: int
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("lowest", "worst_rank", "mean", "provenance"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def kept(self) -> int:
        """How many of the weakest documents are remembered per neuron."""
        return self.lowest["ffn_up"].shape[0]

    def save(self, path: str | Path) -> None:
        """Writes safetensors, atomically, with the provenance in the header."""
        arrays = {f"{t}.{g}": np.ascontiguousarray(a) for t in _TABLES for g, a in getattr(self, t).items()}
        arrays |= {name: np.ascontiguousarray(getattr(self, name)) for name in _ACTIVITY}
        header = {
            "format": _FORMAT,
            "documents": self.documents,
            "tokens": self.tokens,
            "provenance": dict(self.provenance),
        }
        metadata = {"mwork": json.dumps(header, ensure_ascii=False)}
        write_tensors(path, arrays, metadata | {"sha256": checksum_of(metadata, arrays)})

    @classmethod
    def load(cls, path: str | Path) -> NeuronScores:
        """The scores that `save` wrote. Raises InputError, naming the file, where it is not one."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                header = parse_json(metadata.get("mwork", "{}"), "header")
                form = header.get("format") if isinstance(header, dict) else None
                if form == _OLD_FORMAT:
                    raise InputError(f"{path}: neuron scores of an older version; make them anew with `mwork detect`")
                if form != _FORMAT:
                    raise InputError(f"{path}: not neuron scores (its header should say {_FORMAT!r})")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tables = {t: {g: arrays[f"{t}.{g}"] for g in GROUPS} for t in _TABLES}
            activity = {name: arrays[name] for name in _ACTIVITY}
            scores = cls(**tables, **activity, **{n: header[n] for n in ("documents", "tokens", "provenance")})
            written = metadata.get("sha256")  # files of version 0.1 have none
            if written not in (None, checksum_of({k: v for k, v in metadata.items() if k != "sha256"}, arrays)):
                raise ValueError("its checksum is another")
            _check(scores)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: damaged neuron scores ({str(error).splitlines()[0]})") from None
        if written is None:
            line = f"{path}: without a checksum, as version 0.1 wrote scores; their values are not verified"
            warnings.warn(line, InputWarning, stacklevel=2)
        return scores


def _check(scores: NeuronScores) -> None:
    """Raises ValueError, saying what is wrong, for scores that `score_neurons` could not have made."""
    for name in ("documents", "tokens"):
        if type(getattr(scores, name)) is not int or getattr(scores, name) < 1:
            raise ValueError(f"{name} is {getattr(scores, name)!r:.40}")
    kept, layers = scores.lowest["ffn_up"].shape[:2] if scores.lowest["ffn_up"].ndim == 3 else (0, 0)
    for group in GROUPS:
        width = scores.mean[group].shape[-1]
        shapes = {"lowest": (kept, layers, width), "worst_rank": (kept, layers, width), "mean": (layers, width)}
        for table, shape in shapes.items():
            values, dtype = getattr(scores, table)[group], np.int32 if table == "worst_rank" else np.float32
            if values.shape != shape or values.dtype != dtype or not values.size:
                raise ValueError(f"{table}.{group} is {values.dtype} {list(values.shape)}")
            if np.isnan(values).any() or (table == "mean" and np.isinf(values).any()):
                raise ValueError(f"{table}.{group} holds NaN or infinity")
            real = values if table == "mean" else values[: scores.documents]  # beyond, where fewer are remembered
            if real.min() < 0 or (table == "worst_rank" and real.max() >= width):
                raise ValueError(f"{table}.{group} has {real.min():g} to {real.max():g}")
    for name in _ACTIVITY:
        values = getattr(scores, name)
        if values.shape != scores.mean["ffn_up"].shape or values.dtype != np.float32 or not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite float32 {list(scores.mean['ffn_up'].shape)}")


def score_neurons(
    model: Model,
    documents: Iterable[Document | Encoded],
    *,
    kept: int = DEFAULT_KEPT,
    include_bos: bool = False,
    batching: Batching = Batching(),
    provenance: Mapping[str, object] | None = None,
    progress: Callable[[int], None] | None = None,
) -> NeuronScores:
    """Scores every neuron on a stream of documents (str or int32 token arrays); memory does not grow with their number.

    kept: how many of the weakest documents to remember per neuron, which bounds how tolerant a rule can be afterwards.
    include_bos: count the BOS position in the norms; off by default, because its attention-sink activations swamp
    everything. progress is called with the number of documents done after each batch. Raises InputError for an empty
    stream or a document of fewer than two tokens.
    """
    if whole_number("kept", kept, 1) > _MOST_KEPT:
        raise InputError(f"kept is {kept}; at most {_MOST_KEPT} documents are remembered for each neuron")
    mesh = mesh_of(model.decoder)
    shards = size_of(mesh, DATA)
    wide = replace(batching, tokens_per_batch=batching.tokens_per_batch * shards)
    state = OrderStatistics.placed(model.config, kept, mesh)
    count = tokens = counted = 0
    for batch in stream_batches(encoded(model, documents, batching.max_tokens), wide, multiple=shards):
        token_mask = measured_token_mask(model, batch.tokens, batch.lengths, include_bos)
        is_document = batch.documents >= 0
        with on_mesh_of(model.decoder):
            tokens_on_mesh, mask_on_mesh = put((batch.tokens, token_mask), mesh, "batch", "time")
            state = score_batch(model.decoder, state, tokens_on_mesh, mask_on_mesh, put(is_document, mesh, "batch"))
        count += int(is_document.sum())
        tokens += int(batch.lengths.sum())
        counted += int(token_mask.sum())
        if progress is not None:
            progress(count)
    with on_mesh_of(model.decoder):
        host = fetch(merged(state))
    if not all(np.isfinite(total).all() for total in (*host.total.values(), host.activation)):
        raise InputError(f"{model.source}: importances are not finite; are the model's weights sound?")
    _check_not_zero(model, host.total)
    scored_with = {
        "model": asdict(model.info),
        "include_bos": include_bos,
        "max_tokens": batching.max_tokens,
        **(provenance or {}),
    }
    tables = (host.lowest, host.worst_rank, {g: total / np.float32(count) for g, total in host.total.items()})
    lowest, worst_rank, mean = ({**table, "ffn_down": table["ffn_up"]} for table in tables)
    return NeuronScores(
        lowest=lowest,
        worst_rank=worst_rank,
        mean=mean,
        active=(host.active / counted).astype(np.float32),
        activation=(host.activation / counted).astype(np.float32),
        documents=count,
        tokens=tokens,
        provenance=scored_with,
    )


def _check_not_zero(model: Model, totals: Mapping[str, np.ndarray]) -> None:
    """Raises InputError where no neuron does anything, and warns where those of one layer do not: a rule that ranks
    them would choose by their place. totals: [layers, width] each."""
    silent = {group: np.flatnonzero(~total.any(axis=-1)) for group, total in totals.items()}
    if all(layers.size == len(totals[group]) for group, layers in silent.items()):
        raise InputError(f"{model.source}: every importance is 0; are the model's weights those that were trained?")
    for group, layers in silent.items():
        if layers.size:
            line = f"{model.source}: layer {layers[0]}: every importance of {group} is 0; ranks say nothing there"
            warnings.warn(line, InputWarning, stacklevel=3)


@partial(jax.jit, donate_argnums=1)
def score_batch(
    decoder: Decoder, state: OrderStatistics, tokens: jax.Array, token_mask: jax.Array, is_document: jax.Array
) -> OrderStatistics:
    """The order statistics with one more batch: tokens int32 [batch, time]; token_mask float32 [batch, time], 1 for the
    tokens that count; is_document bool [batch], as in `with_batch`."""
    scores, active, activation = importance_and_activity(decoder, tokens, token_mask, state.active.shape[0])
    return with_batch(state, scores, active, activation, is_document)


def load_or_score(
    model: Model,
    documents: Sequence[Encoded],
    path: Path,
    progress: Progress,
    *,
    language: str,
    origin: str,
    max_tokens: int,
    kept: int = DEFAULT_KEPT,
    include_bos: bool = False,
) -> NeuronScores:
    """One language's scores: those in the file `path` where the same model computed them from the same tokens and they
    remember at least `kept` documents; otherwise computed now, and saved there.

    origin: where the documents are from, for the provenance. progress advances by DETECTION_COST per document. Of
    several processes each reads the file, which may be on the first one's disk alone: unless all have it, all compute.
    """
    key = scores_key(model, documents, max_tokens=max_tokens, include_bos=include_bos)
    progress.describe(f"detect {language}")
    if everyone(_has_scores(path, key, kept)):
        progress.add(DETECTION_COST * len(documents), free=True)
        return NeuronScores.load(path)
    scores = score_neurons(
        model,
        documents,
        kept=kept,
        include_bos=include_bos,
        batching=Batching(max_tokens=max_tokens),
        provenance={"language": language, "corpus": origin, "key": key},
        progress=progress.callback(DETECTION_COST),
    )
    scores.save(path)
    return scores


def scores_key(model: Model, documents: Iterable[Encoded], *, max_tokens: int, include_bos: bool = False) -> str:
    """A fingerprint of everything that determines scores; their provenance and that of selected sets has it."""
    # Version 0.1 left out the first of several tokens that a tokenizer puts in front, at most.
    several = model.in_front if len(model.in_front) > 1 else ()
    return fingerprint([DETECTOR_VERSION, model.key, documents_key(documents), max_tokens, include_bos, *several])


def _has_scores(path: Path, key: str, kept: int) -> bool:
    """Whether a file has scores with this key that remember enough documents; a damaged file is written anew."""
    try:
        existing = NeuronScores.load(path) if path.exists() else None
    except InputError:
        return False
    return existing is not None and existing.provenance.get("key") == key and existing.kept >= kept


def check_comparable(scores: Mapping[str, NeuronScores]) -> None:
    """Raises InputError where the scores of two languages are of different models, or were computed differently."""
    first, *others = scores

    def computed_with(language: str, name: str) -> object:
        value = scores[language].provenance.get(name)
        # The paths of one model may be spelled differently.
        return {k: v for k, v in value.items() if k != "source"} if isinstance(value, Mapping) else value

    for name in ("model", "include_bos", "max_tokens"):
        for other in others:
            if computed_with(first, name) != computed_with(other, name):
                kind = "of different models" if name == "model" else f"made with different {name}"
                raise InputError(f"the scores of {first!r} and {other!r} are {kind}; score both anew in the same way")
