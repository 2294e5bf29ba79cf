"""Neurons: the five groups, sets of them on the host, masks over them on the device.

A neuron is one output row of W_Q, W_K, W_V or W_gate/W_up, or one input column of W_down. Each group is counted at its
native width: with grouped queries, keys and values have G * d neurons, never H * d. `ffn_up[i]` and `ffn_down[i]` are
the two ends of the same product act(gate) * up; they differ only when training. In a feed-forward with experts, those
of expert e are e * F to (e + 1) * F - 1, with F an expert's size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError, whole_number
from mwork_jax.runtime.files import read_json, write_json

GROUPS = ("attn_q", "attn_k", "attn_v", "ffn_up", "ffn_down")
ATTENTION_GROUPS = GROUPS[:3]
FFN_GROUPS = GROUPS[3:]
_WIDEST = 1 << 20  # neurons of a group in a layer: more than any model has, and few enough for any machine
_FORMAT = "mwork-neuron-set-1"

LayOut = Callable[[jax.Array], jax.Array]  # [width], what a layer has per neuron -> as its activations are laid out


def files_of_languages(folder: Path, suffix: str) -> dict[str, Path]:
    """{language: LANG.suffix} of a folder of scores or neurons, sorted. Hidden files are left out, such as those that
    macOS puts beside others."""
    return {p.stem: p for p in sorted(folder.glob(f"*{suffix}")) if not p.name.startswith(".")}


def check_language(path: Path, provenance: Mapping[str, object]) -> None:
    """Raises InputError where a file of one language's scores or neurons has the name of another's."""
    language = provenance.get("language")
    if isinstance(language, str) and language != path.stem:
        raise InputError(
            f"{path}: of {language!r:.40} by what it says, of {path.stem!r:.40} by its name; which one holds?"
        )


def group_widths(config: ModelConfig) -> dict[str, int]:
    """Neurons per layer in each group, in the order of GROUPS. Raises InputError for what is no configuration."""
    if not isinstance(config, ModelConfig):
        raise InputError(f"a ModelConfig is needed, model.config, not a {type(config).__name__}")
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return dict(zip(GROUPS, (queries, keys, keys, config.ffn_width, config.ffn_width), strict=True))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeuronMask:
    """Which neurons act: 1 keeps, 0 switches off. A pytree, so masks can be traced, stacked and vmapped.

    Fields are float32 [layers, width]; `attn_q` has width H*d, `attn_k` and `attn_v` G*d, `ffn_up` and `ffn_down` F.
    """

    attn_q: jax.Array
    attn_k: jax.Array
    attn_v: jax.Array
    ffn_up: jax.Array
    ffn_down: jax.Array

    @classmethod
    def keep_all(cls, config: ModelConfig) -> NeuronMask:
        """The mask that changes nothing."""
        return cls(**{g: jnp.ones((config.num_layers, w), jnp.float32) for g, w in group_widths(config).items()})

    def drop(self, neurons: NeuronSet) -> NeuronMask:
        """This mask with `neurons` switched off as well. Raises InputError for what is no set, or of another shape."""
        if not isinstance(neurons, NeuronSet):
            raise InputError(f"a {type(neurons).__name__} cannot be switched off; a NeuronSet is needed")
        fields = {}
        for group in GROUPS:
            kept, dropped = getattr(self, group), neurons.groups[group]
            if kept.shape[-2:] != dropped.shape:
                raise InputError(
                    f"neuron set: {group} has {dropped.shape[0]} layers x {dropped.shape[1]} neurons, "
                    f"the model has {kept.shape[-2]} x {kept.shape[-1]}; the set is of another model"
                )
            fields[group] = kept * jnp.broadcast_to(jnp.asarray(~dropped, jnp.float32), kept.shape)
        return NeuronMask(**fields)

    def changed_layers(self, generated: bool = True) -> np.ndarray:
        """Whether a layer computes anything else than in the original model: bool [..., layers]. A mask acts on every
        token, `generated` or not."""
        return np.any([np.asarray(getattr(self, group) != 1).any(axis=-1) for group in GROUPS], axis=0)

    def applied(self, site: str, x: jax.Array, lay_out: LayOut, generated: jax.Array | None) -> jax.Array:
        """Within one layer: what becomes of the activations x [b, t, ...] of a site, as in
        `Intervention.applied`."""
        if site == "gate":
            return x
        return x * lay_out(self.ffn_up * self.ffn_down if site == "neuron" else getattr(self, site))

    def steered(self, x: jax.Array, generated: jax.Array | None) -> jax.Array:
        """Within one layer: the residual stream that leaves it, to which a mask adds nothing."""
        return x

    @staticmethod
    def stack(masks: list[NeuronMask]) -> NeuronMask:
        """Several masks as one with a leading axis, for `jax.vmap`. Raises InputError for none, and for what is no
        mask."""
        masks = list(masks)
        wrong = [type(mask).__name__ for mask in masks if not isinstance(mask, NeuronMask)]
        if wrong or not masks:
            raise InputError(f"stack: {f'a {wrong[0]} is no NeuronMask' if wrong else 'there are no masks'}")
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks)


def _frozen(array: Any, group: str) -> np.ndarray:
    given = np.asarray(array)
    if given.dtype != bool and not (given.dtype.kind in "iuf" and np.isin(given, (0, 1)).all()):
        raise InputError(f"neuron set: {group} is {given.dtype}; True or False for each neuron is needed, not indices")
    array = np.array(given, dtype=bool)
    array.setflags(write=False)
    return array


def _members(rows: list[list[int]], layers: int, width: int, group: str) -> np.ndarray:
    """One group of a saved set as bool [layers, width]. Raises InputError where `rows` are not indices into it."""
    if len(rows) != layers:
        raise InputError(f"{group} has {len(rows)} layers, not the {layers!r:.40} that 'layers' says")
    if type(width) is not int or not 0 < width <= _WIDEST:
        raise InputError(f"{group} has width {width!r:.40}; a whole number up to {_WIDEST} is needed")
    members = np.zeros((layers, width), bool)
    for layer, indices in enumerate(rows):
        wrong = [i for i in indices if type(i) is not int or not 0 <= i < width]
        if wrong:
            raise InputError(f"{group}, layer {layer}: {wrong[0]!r:.40} is not an index from 0 to {width - 1}")
        members[layer, np.asarray(indices, np.int64)] = True
        if members[layer].sum() != len(indices):
            raise InputError(f"{group}, layer {layer}: an index is listed twice; each should be there once")
    return members


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """A set of neurons of one model, kept on the host with its provenance.

    `groups` maps each of GROUPS to a read-only bool array [layers, width], True for a member. Sets of the same model
    combine with `&`, `|`, `-`. Every operation gives a new set; `provenance` records its origin (model, language,
    corpus, rule).
    """

    groups: Mapping[str, np.ndarray]
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.groups) != set(GROUPS):
            raise InputError(f"neuron set: groups must be {', '.join(GROUPS)}, not {', '.join(map(str, self.groups))}")
        frozen = {g: _frozen(self.groups[g], g) for g in GROUPS}
        for group, members in frozen.items():
            if members.ndim != 2 or members.shape[0] != frozen[GROUPS[0]].shape[0]:
                raise InputError(
                    f"neuron set: {group} is {list(members.shape)}; [layers, width] is needed in each group"
                )
        object.__setattr__(self, "groups", MappingProxyType(frozen))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    @classmethod
    def empty(cls, config: ModelConfig) -> NeuronSet:
        """No neurons of a model of this shape."""
        return cls({g: np.zeros((config.num_layers, w), bool) for g, w in group_widths(config).items()})

    def none(self) -> NeuronSet:
        """No neurons of the model that this set is of."""
        return NeuronSet({g: np.zeros_like(m) for g, m in self.groups.items()})

    @cached_property
    def fingerprint(self) -> str:
        """A short hash over the members, the same for equal sets wherever they came from."""
        digest = hashlib.sha256()
        for group, members in self.groups.items():
            digest.update(f"{group} {members.shape}\n".encode())
            digest.update(np.packbits(members).tobytes())
        return digest.hexdigest()[:32]

    @property
    def num_layers(self) -> int:
        return self.groups[GROUPS[0]].shape[0]

    def count(self) -> int:
        """How many neurons, all groups together."""
        return sum(int(members.sum()) for members in self.groups.values())

    def counts(self) -> dict[str, np.ndarray]:
        """How many neurons in each layer: {group: int [layers]}."""
        return {g: members.sum(axis=1) for g, members in self.groups.items()}

    def total(self) -> int:
        """How many neurons the model has in these groups."""
        return sum(members.size for members in self.groups.values())

    def __copy__(self) -> NeuronSet:
        return self  # nothing in a set can change, so it is its own copy

    def __deepcopy__(self, memo: dict[int, Any]) -> NeuronSet:
        return self

    def __len__(self) -> int:
        return self.count()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return self._shapes() == other._shapes() and all(
            np.array_equal(self.groups[g], other.groups[g]) for g in GROUPS
        )

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, np.logical_and, "and")

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, np.logical_or, "or")

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, lambda a, b: a & ~b, "minus")

    def in_layers(self, start: int, stop: int) -> NeuronSet:
        """The members in layers start <= layer < stop. Raises InputError for a range outside the model."""
        start, stop = whole_number("start", start, 0), whole_number("stop", stop, 0)
        if not start <= stop <= self.num_layers:
            raise InputError(f"layers [{start}, {stop}) are outside the model, which has {self.num_layers} layers")
        inside = np.zeros((self.num_layers, 1), bool)
        inside[start:stop] = True
        return self._derived({g: m & inside for g, m in self.groups.items()}, layers=[start, stop])

    def in_groups(self, *names: str) -> NeuronSet:
        """The members in the groups named."""
        for name in names:
            if name not in GROUPS:
                raise InputError(f"{name!r} is not a neuron group; the groups are {', '.join(GROUPS)}")
        return self._derived(
            {g: m if g in names else np.zeros_like(m) for g, m in self.groups.items()}, only=list(names)
        )

    def random_like(self, seed: int) -> NeuronSet:
        """As many neurons per layer and group, drawn at random from the whole layer and group.

        A neuron in both `ffn_up` and `ffn_down` switches one product off, not two. So the number of products is
        matched too: a position that the set has at both ends is drawn once and taken at both ends. The draw depends on
        the seed and on the set, so that sets of other languages get controls of their own: with one permutation for
        all, the differences between languages would hide how much chance is in a control.
        """
        seed = whole_number("seed", seed, 0)
        rng = np.random.default_rng([seed, int(self.fingerprint, 16)])
        groups = {g: np.zeros_like(m) for g, m in self.groups.items()}
        for layer in range(self.num_layers):
            for group in ATTENTION_GROUPS:
                members = self.groups[group][layer]
                groups[group][layer, rng.permutation(members.size)[: members.sum()]] = True
            up, down = self.groups["ffn_up"][layer], self.groups["ffn_down"][layer]
            both, only_up, only_down = int((up & down).sum()), int((up & ~down).sum()), int((down & ~up).sum())
            drawn = rng.permutation(up.size)
            groups["ffn_up"][layer, drawn[: both + only_up]] = True
            groups["ffn_down"][layer, drawn[:both]] = True
            groups["ffn_down"][layer, drawn[both + only_up : both + only_up + only_down]] = True
        return self._derived(groups, random_seed=seed)

    def save(self, path: str | Path) -> None:
        """Writes the set as JSON, atomically: per group and layer, the sorted indices of its members."""
        body = {
            "format": _FORMAT,
            "provenance": dict(self.provenance),
            "widths": {g: m.shape[1] for g, m in self.groups.items()},
            "layers": self.num_layers,
            "count": self.count(),
            "fingerprint": self.fingerprint,
            "neurons": {g: [np.flatnonzero(row).tolist() for row in m] for g, m in self.groups.items()},
        }
        write_json(path, body)

    @classmethod
    def load(cls, path: str | Path) -> NeuronSet:
        """The set that `save` wrote. Raises InputError, naming the file, where it is not one."""
        body = read_json(path)
        if not isinstance(body, dict) or body.get("format") != _FORMAT:
            raise InputError(f"{path}: not a neuron set (its 'format' should be {_FORMAT!r})")
        try:
            groups = {g: _members(body["neurons"][g], body["layers"], body["widths"][g], g) for g in GROUPS}
            neurons, count = cls(groups, body["provenance"]), body["count"]
            if neurons.count() != count:
                raise InputError(f"'count' is {count!r:.40}, but {neurons.count()} neurons are listed")
            if body.get("fingerprint", neurons.fingerprint) != neurons.fingerprint:
                raise InputError("its members are not those of its fingerprint")
            return neurons
        except InputError as error:
            raise InputError(f"{path}: damaged neuron set ({error})") from None
        except (KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise InputError(f"{path}: damaged neuron set ({type(error).__name__}: {error!s:.200})") from None

    def __repr__(self) -> str:
        language = self.provenance.get("language")
        return f"NeuronSet({self.count()} of {self.total()} neurons" + (f", {language})" if language else ")")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {g: m.shape for g, m in self.groups.items()}

    def _combine(self, other: NeuronSet, operation: Any, name: str) -> NeuronSet:
        if not isinstance(other, NeuronSet):
            raise InputError(f"a neuron set and a {type(other).__name__} cannot be combined; two sets can")
        if self._shapes() != other._shapes():
            raise InputError(
                f"neuron sets of different models cannot be combined: {self._shapes()} and {other._shapes()}"
            )
        groups = {g: operation(self.groups[g], other.groups[g]) for g in GROUPS}
        return NeuronSet(groups, {"operation": name, "of": [dict(self.provenance), dict(other.provenance)]})

    def _derived(self, groups: dict[str, np.ndarray], **how: Any) -> NeuronSet:
        return replace(self, groups=groups, provenance={**self.provenance, **how})
