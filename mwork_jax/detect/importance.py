"""Documents to neuron importance (PLND, section 2 of the paper): all five groups from one forward pass.

Imp(N | c) = || T(h; N zeroed) - T(h) ||_2 over document c's real tokens. Feed-forward and value neurons have it in
closed form on the block's output; query and key neurons are measured on the attention weights
(`mwork_kernels.qk_importance`).

What is kept of a stream of documents are order statistics, so that any threshold can be asked afterwards and memory
does not grow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from mwork_jax.config import ModelConfig
from mwork_jax.corpus import Batching, Encoded, encoded, list_batches, stream_batches
from mwork_jax.errors import InputError
from mwork_jax.model.decoder import Decoder, LayerRecord, hidden_states
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import GROUPS, NeuronMask, group_widths
from mwork_jax.runtime.files import write_tensors
from mwork_jax.sharding import DATA, constrain, fetch, mesh_of, num_shards, on_mesh_of, per_device, put, size_of
from mwork_kernels.qk_importance import qk_importance  # pyright: ignore[reportMissingImports]

_FORMAT = "mwork-neuron-scores-2"
_OLD_FORMAT = "mwork-neuron-scores-1"
DETECTOR_VERSION = "importance-3"  # scores of another one are made again, not mixed in
DEFAULT_KEPT = 8
_MEASURED = GROUPS[:4]  # ffn_up and ffn_down share their importance: what is kept of one is kept of both
_TABLES = ("lowest", "worst_rank", "mean")
_ACTIVITY = ("active", "activation")


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """What a stream of documents of one language says about every neuron.

    Per group, with n = `kept` documents at most remembered per neuron:
    lowest [n, layers, width], float32: the n smallest importances over the documents, ascending;
    worst_rank [n, layers, width], int32: the n worst ranks within layer and group, descending, 0 being a document's
    most important neuron; mean [layers, width], float32.
    Of the feed-forward, over the tokens that count in the norms: active [layers, f], float32, the share with
    act(gate) > 0 (what LAPE needs); activation [layers, f], float32, the mean of act(gate) * up.
    `lowest[0] >= epsilon` and `worst_rank[0] < K` say that a neuron is activated for every document; entry m says it
    for all but m of them.
    """

    lowest: Mapping[str, np.ndarray]
    worst_rank: Mapping[str, np.ndarray]
    mean: Mapping[str, np.ndarray]
    active: np.ndarray
    activation: np.ndarray
    documents: int
    tokens: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("lowest", "worst_rank", "mean", "provenance"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def kept(self) -> int:
        """How many of the weakest documents are remembered per neuron."""
        return self.lowest[GROUPS[0]].shape[0]

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
        write_tensors(path, arrays, metadata)

    @classmethod
    def load(cls, path: str | Path) -> NeuronScores:
        """The scores that `save` wrote. Raises InputError, naming the file, where it is not one."""
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get("mwork", "{}"))
                if header.get("format") == _OLD_FORMAT:
                    raise InputError(f"{path}: neuron scores of an older version; make them anew with `mwork detect`")
                if header.get("format") != _FORMAT:
                    raise InputError(f"{path}: not neuron scores (its header should say {_FORMAT!r})")
                tables = {t: {g: file.get_tensor(f"{t}.{g}") for g in GROUPS} for t in _TABLES}
                activity = {name: file.get_tensor(name) for name in _ACTIVITY}
                return cls(**tables, **activity, **{n: header[n] for n in ("documents", "tokens", "provenance")})
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: damaged neuron scores ({str(error).splitlines()[0]})") from None


def score_neurons(
    model: Model,
    documents: Iterable[Document | Encoded],
    *,
    kept: int = DEFAULT_KEPT,
    include_bos: bool = False,
    batching: Batching = Batching(),
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> NeuronScores:
    """Scores every neuron on a stream of documents (str or int32 token arrays); memory does not grow with their number.

    kept: how many of the weakest documents to remember per neuron, which bounds how tolerant a rule can be afterwards.
    include_bos: count the BOS position in the norms; off by default, because its attention-sink activations swamp
    everything. progress is called with the number of documents done after each batch. Raises InputError for an empty
    stream or a document of fewer than two tokens.
    """
    if kept < 1:
        raise InputError(f"kept is {kept}; at least 1 is needed")
    mesh = mesh_of(model.decoder)
    shards = size_of(mesh, DATA)
    wide = replace(batching, tokens_per_batch=batching.tokens_per_batch * shards)
    state = OrderStatistics.placed(model.config, kept, mesh)
    count = tokens = counted = 0
    for batch in stream_batches(encoded(model, documents, batching.max_tokens), wide, multiple=shards):
        rows = counted_rows(model.config, batch.tokens, batch.lengths, include_bos)
        with on_mesh_of(model.decoder):
            ready = put((batch.tokens, rows), mesh, "batch", "time"), put(batch.documents >= 0, mesh, "batch")
            state = score_batch(model.decoder, state, *ready[0], ready[1])
        count += int((batch.documents >= 0).sum())
        tokens += int(batch.lengths.sum())
        counted += int(rows.sum())
        if progress is not None:
            progress(count)
    with on_mesh_of(model.decoder):
        host = fetch(merged(state))
    made = {
        "model": model.identity,
        "include_bos": include_bos,
        "max_tokens": batching.max_tokens,
        **(provenance or {}),
    }
    tables = (host.lowest, host.worst_rank, {g: total / np.float32(count) for g, total in host.total.items()})
    both_ends = ({**table, GROUPS[4]: table[GROUPS[3]]} for table in tables)
    active, activation = (np.float32(total / counted) for total in (host.active, host.activation))
    return NeuronScores(*both_ends, active, activation, count, tokens, made)


def importance(model: Model, document: Document, *, include_bos: bool = False) -> dict[str, np.ndarray]:
    """Imp(N | document) of every neuron: {group: float32 [layers, width]}. The document is str or int32 [time]; what is
    beyond the model's context is left out."""
    (ready,) = encoded(model, [document], max_tokens=model.config.max_length, where="importance")
    (batch,) = list_batches([ready], Batching(max_tokens=model.config.max_length))
    rows = counted_rows(model.config, batch.tokens, batch.lengths, include_bos)
    with on_mesh_of(model.decoder):
        scores = fetch(importance_batch(model.decoder, batch.tokens, rows))
    return {g: s[0] for g, s in scores.items()}


def counted_rows(config: ModelConfig, tokens: np.ndarray, lengths: np.ndarray, include_bos: bool) -> np.ndarray:
    """Which positions enter the norms: float32 [batch, time], 1 for real tokens but, unless asked, not for a leading
    BOS."""
    rows = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
    if not include_bos and config.bos_id is not None:
        rows[:, 0] &= tokens[:, 0] != config.bos_id
    return rows.astype(np.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OrderStatistics:
    """The order statistics so far, on the device. Every leaf has a leading axis over shards of the documents: each
    group of devices keeps those of its own, so that nothing is exchanged until the end."""

    lowest: dict[str, jax.Array]  # [shards, kept, layers, width]
    worst_rank: dict[str, jax.Array]  # [shards, kept, layers, width]
    total: dict[str, jax.Array]  # [shards, layers, width]
    active: jax.Array  # [shards, layers, f]
    activation: jax.Array  # [shards, layers, f]

    @classmethod
    def empty(cls, config: ModelConfig, kept: int, shards: int = 1) -> OrderStatistics:
        shapes = {g: (config.num_layers, group_widths(config)[g]) for g in _MEASURED}
        ffn = shapes[GROUPS[3]]
        return cls(
            {g: jnp.full((shards, kept, *s), jnp.inf, jnp.float32) for g, s in shapes.items()},
            {g: jnp.full((shards, kept, *s), -1, jnp.int32) for g, s in shapes.items()},
            {g: jnp.zeros((shards, *s), jnp.float32) for g, s in shapes.items()},
            jnp.zeros((shards, *ffn), jnp.int32),
            jnp.zeros((shards, *ffn), jnp.float32),
        )

    @classmethod
    def placed(cls, config: ModelConfig, kept: int, mesh: Mesh | None) -> OrderStatistics:
        """`empty`, each shard on its own devices from the beginning."""
        if mesh is None:
            return cls.empty(config, kept)
        with jax.set_mesh(mesh):
            return jax.jit(lambda: cls.empty(config, kept, size_of(mesh, DATA)).constrained())()

    def constrained(self) -> OrderStatistics:
        """Laid out on the mesh; `order_statistics_axes` says how."""
        return jax.tree.map(lambda x: constrain(x, *order_statistics_axes(x.ndim)), self)


def order_statistics_axes(ndim: int) -> tuple[str, ...]:
    """The logical axes of a leaf of `OrderStatistics` with so many dimensions."""
    return ("shards", *("kept",) * (ndim - 3), "score_layers", "width")


@partial(jax.jit, donate_argnums=1)
def score_batch(
    decoder: Decoder, state: OrderStatistics, tokens: jax.Array, rows: jax.Array, real: jax.Array
) -> OrderStatistics:
    """Folds a batch into the order statistics; rows of the batch that are not `real` change nothing. The batch has a
    multiple of the state's shards as rows; a shard's rows lie beside each other."""
    shards = state.active.shape[0]
    scores, active, activation = _measure(decoder, tokens, rows, shards)
    there = real.reshape(shards, -1)[:, :, None, None]
    lowest, worst, total = {}, {}, {}
    for group in _MEASURED:
        score = constrain(scores[group], "batch", "score_layers", "width")
        ranks = jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1).astype(jnp.int32)
        score, ranks = (x.reshape(shards, -1, *x.shape[1:]) for x in (score, ranks))
        lowest[group] = _insert(state.lowest[group], jnp.where(there, score, jnp.inf), jnp.minimum, jnp.maximum)
        worst[group] = _insert(state.worst_rank[group], jnp.where(there, ranks, -1), jnp.maximum, jnp.minimum)
        total[group] = state.total[group] + jnp.sum(jnp.where(there, score, 0.0), axis=1)
    return OrderStatistics(lowest, worst, total, state.active + active, state.activation + activation).constrained()


@jax.jit
def merged(state: OrderStatistics) -> OrderStatistics:
    """The order statistics of all shards together, without the leading axis. Layer by layer, so that no device holds
    all shards of more than one."""

    def extreme(x: jax.Array, sign: int) -> jax.Array:
        shards, kept, _, width = x.shape
        if shards == 1:
            return x[0]
        layers = jnp.moveaxis(x, 2, 0).reshape(-1, shards * kept, width)
        return jnp.moveaxis(jax.lax.map(lambda one: sign * jnp.sort(sign * one, axis=0)[:kept], layers), 0, 1)

    lowest = {g: extreme(x, 1) for g, x in state.lowest.items()}
    worst = {g: extreme(x, -1) for g, x in state.worst_rank.items()}
    total = {g: x.sum(axis=0) for g, x in state.total.items()}
    return OrderStatistics(lowest, worst, total, state.active.sum(axis=0), state.activation.sum(axis=0))


def _insert(sorted_: jax.Array, new: jax.Array, keep: Callable, push: Callable) -> jax.Array:
    """Inserts each of new [shards, b, ...] into the shard's sorted list [shards, kept, ...]; what no longer fits falls
    out at its end."""

    def insert(entries: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
        placed = []
        for entry in jnp.moveaxis(entries, 1, 0):
            placed.append(keep(entry, value))
            value = push(entry, value)
        return jnp.stack(placed, axis=1), None

    return jax.lax.scan(insert, sorted_, jnp.moveaxis(new, 1, 0))[0]


def _measure(
    decoder: Decoder, tokens: jax.Array, rows: jax.Array, shards: int = 1
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """One forward pass: Imp of every neuron for each document, {group: float32 [batch, layers, width]}, and over the
    counted tokens of each shard, [shards, layers, f], how often act(gate) > 0 and the sum of act(gate) * up."""

    def observe(record: LayerRecord) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
        def split(x: jax.Array) -> jax.Array:
            return x.reshape(shards, -1, *x.shape[1:])

        positive = (record.gate > 0) & (rows[:, :, None] > 0)  # where its activation is positive, in every family
        activation = jnp.einsum("zbt,zbtf->zf", split(rows), split(record.product), precision=jax.lax.Precision.HIGHEST)
        active = split(positive).sum(axis=(1, 2), dtype=jnp.int32)
        return _layer_importance(decoder.config, rows, record), active, activation

    _, (scores, active, activation) = hidden_states(
        decoder, tokens, NeuronMask.keep_all(decoder.config), observe=observe
    )
    by_row = {g: jnp.swapaxes(s, 0, 1) for g, s in scores.items()}
    return by_row, jnp.swapaxes(active, 0, 1), jnp.swapaxes(activation, 0, 1)


def _importance(decoder: Decoder, tokens: jax.Array, rows: jax.Array) -> dict[str, jax.Array]:
    """Imp of every neuron for each document of a batch: {group: float32 [batch, layers, width]}."""
    return _measure(decoder, tokens, rows)[0]


importance_batch = jax.jit(_importance)


def _layer_importance(config: ModelConfig, rows: jax.Array, record: LayerRecord) -> dict[str, jax.Array]:
    """One layer's importances, {group: float32 [batch, width]}."""
    batch = rows.shape[0]
    gains = (None, None)
    if config.qk_norm:
        gains = (_norm_gain(record.q_raw, config), _norm_gain(record.k_raw, config))
    of_q, of_k = _query_key_importance(config, rows, record, gains)
    ffn = _ffn_importance(rows, record)
    flat = {"attn_q": of_q, "attn_k": of_k, "attn_v": _value_importance(config, rows, record)}
    return {g: s.reshape(batch, -1) for g, s in flat.items()} | {"ffn_up": ffn, "ffn_down": ffn}


def _query_key_importance(
    config: ModelConfig, rows: jax.Array, record: LayerRecord, gains: tuple[jax.Array | None, jax.Array | None]
) -> tuple[jax.Array, jax.Array]:
    """Of every query [b, h, k] and key neuron [b, g, k]; each device works on its own documents and heads."""
    k, (q_gain, k_gain), groups = record.k, gains, config.num_kv_heads
    if num_shards("heads", config.num_heads) != num_shards("kv_heads", groups):
        # More devices than key heads: every query head gets keys of its own, whose squares are summed afterwards.
        k, k_gain = (x if x is None else jnp.repeat(x, config.queries_per_group, axis=2) for x in (k, k_gain))

    def some(q: jax.Array, k: jax.Array, *rest: Any) -> tuple[jax.Array, jax.Array]:
        *others, q_gain, k_gain = rest
        options = {"scale": config.attn_scale, "softcap": config.attn_softcap, "q_gain": q_gain, "k_gain": k_gain}
        return qk_importance(q, k, *others, **options)

    of_heads, table = ("batch", "time", "heads", "head_dim"), ("batch", "time", "head_dim")
    of_q, of_k = per_device(
        some,
        (record.q, k, record.cos, record.sin, rows, record.window, q_gain, k_gain),
        (of_heads, of_heads, table, table, ("batch", "time"), (), of_heads, of_heads),
        (("batch", "heads", "head_dim"), ("batch", "heads", "head_dim")),
        tuple((x.shape[0], *x.shape[2:]) for x in (record.q, k)),
    )
    if of_k.shape[1] != groups:
        of_k = jnp.sqrt(jnp.square(of_k).reshape(of_k.shape[0], groups, -1, of_k.shape[2]).sum(axis=2))
    return of_q, of_k


def _ffn_importance(rows: jax.Array, record: LayerRecord) -> jax.Array:
    """Imp[k] = ||h[:, k]|| ||W_down[:, k]||: zeroing one neuron removes a rank-one term, whose norm separates. [b,
    f]."""
    weights = jnp.square(record.weights["down"].astype(jnp.float32)).sum(axis=0)
    return jnp.sqrt(jnp.sum(rows[:, :, None] * jnp.square(record.product), axis=1) * weights)


def _value_importance(config: ModelConfig, rows: jax.Array, record: LayerRecord) -> jax.Array:
    """Zeroing v[:, (g, j)] removes sum_r a_r w_r^T over the query heads r of group g; two Gram matrices give its norm.
    [b, g, k]."""
    groups, shared, size = config.num_kv_heads, config.queries_per_group, config.head_dim
    heads = record.heads.reshape(*record.heads.shape[:2], groups, shared, size)
    out = record.weights["o"].astype(jnp.float32).reshape(-1, groups, shared, size)
    precision = jax.lax.Precision.HIGHEST
    of_heads = jnp.einsum("bt,btgrk,btgqk->bgkrq", rows, heads, heads, precision=precision)
    of_out = jnp.einsum("mgrk,mgqk->gkrq", out, out, precision=precision)
    return jnp.sqrt(jnp.maximum(jnp.sum(of_heads * of_out, axis=(-2, -1)), 0.0))


def _norm_gain(raw: jax.Array, config: ModelConfig) -> jax.Array:
    """By how much a q/k-norm rescales a head's vector [b, t, heads, k] when one of its entries becomes zero: r' / r -
    1."""
    squares = jnp.square(raw)
    share = squares / raw.shape[-1] / (squares.mean(axis=-1, keepdims=True) + config.norm_eps)
    return jnp.expm1(-0.5 * jnp.log1p(-jnp.minimum(share, 1 - 1e-6)))
