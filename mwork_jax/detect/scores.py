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
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from mwork_jax.corpus import Batching, Encoded, documents_key, encoded, measured_token_mask, stream_batches
from mwork_jax.detect.activations import MEASURED_SITES, RESIDUAL
from mwork_jax.detect.importance import importance_and_activity
from mwork_jax.detect.order_statistics import OrderStatistics, merged, with_batch
from mwork_jax.errors import InputError, InputWarning, whole_number
from mwork_jax.model.checks import check_model
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import ATTENTION_GROUPS, GROUPS
from mwork_jax.runtime.cache import fingerprint
from mwork_jax.runtime.distributed import everyone
from mwork_jax.runtime.files import checksum_of, parse_json, write_tensors
from mwork_jax.runtime.progress import Progress
from mwork_jax.sharding import fetch, mesh_of, on_mesh_of, parts_of, put

_FORMAT = "mwork-neuron-scores-2"
_OLD_FORMAT = "mwork-neuron-scores-1"
DETECTOR_VERSION = "importance-4"  # of the code that computes scores: those of another version are computed again
DEFAULT_KEPT = 8  # weakest documents that are remembered per neuron
_MOST_KEPT = 1 << 20  # far more than a device has room for
DETECTION_COST = 1.5  # time to score a document, in units of evaluating one; for the time left
_TABLES = ("lowest", "worst_rank", "mean")
_ACTIVITY = ("active", "activation")
_VALUES = ("largest", "routed")  # which files of version 0.1 do not have, nor `means`


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """Scores of every neuron over a stream of documents of one language.

    Per group, with n = `kept` documents at most remembered per neuron:
    lowest [n, layers, width], float32: the n smallest importances over the documents, ascending;
    worst_rank [n, layers, width], int32: the n worst ranks within layer and group, descending, 0 being a document's
    most important neuron; mean [layers, width], float32.
    Of the feed-forward, over the tokens that count in the norms: active [layers, f], float32, the share with
    act(gate) > 0 (what LAPE needs); activation [layers, f], float32, the mean of act(gate) * up.
    means {site: float32 [layers, width]}: what `mwork_jax.intervention` puts in a neuron's place: the mean output of
    attn_q, attn_k and attn_v, of act(gate) as "gate" and of act(gate) * up as "neuron", those of an expert over the
    tokens that go to it; and "residual" [layers, hidden], the mean of the residual stream that leaves each layer.
    largest [layers, f], float32: the largest act(gate) * up; 0 where an expert's neuron never acted. routed [layers,
    experts], float32: the share of the tokens that went to each expert; [layers, 0] without experts. Scores that
    version 0.1 saved have no means, and None for these two.
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
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    largest: np.ndarray | None = None
    routed: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("lowest", "worst_rank", "mean", "provenance", "means"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def kept(self) -> int:
        """How many of the weakest documents are remembered per neuron."""
        return self.lowest["ffn_up"].shape[0]

    def save(self, path: str | Path) -> None:
        """Writes safetensors, atomically, with the provenance in the header."""
        arrays = {f"{t}.{g}": np.ascontiguousarray(a) for t in _TABLES for g, a in getattr(self, t).items()}
        arrays |= {name: np.ascontiguousarray(getattr(self, name)) for name in _ACTIVITY}
        arrays |= {f"means.{site}": np.ascontiguousarray(a) for site, a in self.means.items()}
        arrays |= {n: np.ascontiguousarray(a) for n in _VALUES if (a := getattr(self, n)) is not None}
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
            values = {name: arrays.get(name) for name in _VALUES}
            values["means"] = {s: arrays[f"means.{s}"] for s in MEASURED_SITES if f"means.{s}" in arrays}
            counts = {name: header[name] for name in ("documents", "tokens", "provenance")}
            scores = cls(**tables, **activity, **values, **counts)
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
    _check_values(scores)
    for name in _ACTIVITY:
        values = getattr(scores, name)
        if values.shape != scores.mean["ffn_up"].shape or values.dtype != np.float32 or not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite float32 {list(scores.mean['ffn_up'].shape)}")


def _check_values(scores: NeuronScores) -> None:
    """`_check` of what interventions use, of which a file has all or nothing."""
    if not scores.means and scores.largest is None and scores.routed is None:
        return
    if set(scores.means) != set(MEASURED_SITES) or scores.largest is None or scores.routed is None:
        raise ValueError("it has some of the values that interventions use, not all")
    shapes = {group: scores.mean[group].shape for group in ATTENTION_GROUPS}
    ffn = scores.mean["ffn_up"].shape
    arrays = {f"means.{site}": (scores.means[site], shapes.get(site, ffn)) for site in MEASURED_SITES}
    # The file has no other record of the hidden size and of the number of experts.
    arrays["means.residual"] = (scores.means[RESIDUAL], (ffn[0], *scores.means[RESIDUAL].shape[1:2]))
    arrays |= {"largest": (scores.largest, ffn), "routed": (scores.routed, (ffn[0], *scores.routed.shape[1:2]))}
    for name, (values, shape) in arrays.items():
        if values.shape != shape or values.dtype != np.float32 or not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite float32 {list(shape)}")


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
    check_model(model)
    mesh = mesh_of(model.decoder)
    shards = parts_of(mesh, "batch")
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
    if not all(np.isfinite(total).all() for total in (*host.total.values(), *host.activity.sums.values())):
        raise InputError(f"{model.source}: importances are not finite; are the model's weights sound?")
    _check_not_zero(model, host.total)
    scored_with = {
        "model": asdict(model.info),
        "include_bos": include_bos,
        "max_tokens": batching.max_tokens,
        **(provenance or {}),
    }
    return _scores_of(host, count, tokens, counted, scored_with)


def _scores_of(state: Any, documents: int, tokens: int, counted: int, provenance: Mapping[str, object]) -> NeuronScores:
    """From the merged `OrderStatistics`, on the host, of so many documents, of whose tokens `counted` count."""
    tables = (state.lowest, state.worst_rank, {g: total / np.float32(documents) for g, total in state.total.items()})
    lowest, worst_rank, mean = ({**table, "ffn_down": table["ffn_up"]} for table in tables)
    did = state.activity
    return NeuronScores(
        lowest=lowest,
        worst_rank=worst_rank,
        mean=mean,
        active=(did.active / counted).astype(np.float32),
        activation=(did.sums["neuron"] / counted).astype(np.float32),
        documents=documents,
        tokens=tokens,
        provenance=provenance,
        means=_means(did, counted),
        largest=np.where(np.isfinite(did.largest), did.largest, 0).astype(np.float32),
        routed=(did.sent / counted).astype(np.float32),
    )


def _means(activity: Any, counted: int) -> dict[str, np.ndarray]:
    """Of an `Activity` on the host, over the tokens at which a neuron acted: those that count, of an expert those of
    them that went to it."""
    means = {site: total / np.float32(counted) for site, total in activity.sums.items()}
    if activity.sent.shape[-1]:
        size = activity.sums["gate"].shape[-1] // activity.sent.shape[-1]
        of_neurons = np.repeat(np.maximum(activity.sent, 1), size, axis=-1).astype(np.float32)
        means |= {site: activity.sums[site] / of_neurons for site in ("gate", "neuron")}
    return means


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
    shards = state.activity.active.shape[0]
    return with_batch(state, *importance_and_activity(decoder, tokens, token_mask, shards), is_document)


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
