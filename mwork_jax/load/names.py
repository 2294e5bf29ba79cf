"""Tensor names of checkpoints: those of a model of its own, whatever stands in front of them, and of parameters that a
checkpoint keeps in one tensor together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mwork_jax.config import ModelConfig
from mwork_jax.errors import InputError
from mwork_jax.families import FAMILIES
from mwork_jax.families.base import Derived, FusedRows
from mwork_jax.families.registry import derived_in_layer, expert_names, fused_in_layer
from mwork_jax.load.source import SlicedSource, WeightSource

# What stands in front of a model's tensors instead, and of its head: nothing, where the head was left out (embedding
# models, BLOOM), the two ways in which transformers has written the text part of models that read images, and what
# torch.compile, PyTorch's data parallelism and PEFT put there when what they wrap is saved as it is.
_PREFIXES = {
    "": "",
    "language_model.model.": "language_model.",
    "model.language_model.": "",
    **{f"{wrapper}model.": wrapper for wrapper in ("_orig_mod.", "module.", "base_model.model.")},
}
# The other parts of such models, which nothing here reads.
_OTHER_PARTS = tuple(before + part for before in ("", "model.") for part in ("vision_tower.", "multi_modal_projector."))


def with_usual_names(config: ModelConfig, source: WeightSource) -> WeightSource:
    """The source under the names that a causal language model of its own has (`families.checkpoint_names`), each
    parameter in a tensor of its own. Raises InputError where it holds two models' tensors, each under a spelling of its
    own. The other parts of a model that reads images are left out."""
    return _apart(config, _experts_together(config, _with_derived(config, _without_prefix(config, source))))


def _without_prefix(config: ModelConfig, source: WeightSource) -> WeightSource:
    present, family = source.names(), FAMILIES[config.family]
    usual, _, embed = family.whole_tensors["embed"].partition(".")
    usual, head = f"{usual}.", family.whole_tensors["head"]
    spelled = [prefix for prefix in (usual, *_PREFIXES) if prefix + embed in present]
    if len(spelled) > 1:
        both = " and ".join(prefix + embed for prefix in spelled)
        raise InputError(f"{source.where}: {both} are both in the checkpoint; which one holds?")
    if not spelled or spelled[0] == usual:
        return source
    prefix = spelled[0]
    stored = {}
    for name in present:
        if name == _PREFIXES[prefix] + head:
            stored[head] = name
        elif not (prefix and name.startswith(_OTHER_PARTS)):
            stored[usual + name.removeprefix(prefix) if name.startswith(prefix) else name] = name
    others = {name for name in present if prefix and name.startswith(_OTHER_PARTS)}
    if twice := sorted(present - others - set(stored.values())):
        raise InputError(f"{source.where}: {twice[0]} is in the checkpoint under another name too; which one holds?")
    return _SlicedRenamed(source, stored) if isinstance(source, SlicedSource) else _Renamed(source, stored)


def _with_derived(config: ModelConfig, source: WeightSource) -> WeightSource:
    """The source with the tensors that are computed from others; as it is where none is."""
    present = source.names()
    derived: dict[str, Derived] = {}
    for layer in range(config.num_layers):
        for name, ways in derived_in_layer(config, layer).items():
            here = [way for way in ways if present.issuperset(way.sources)]
            if len(here) > 1:
                both = " and ".join(way.sources[0] for way in here)
                raise InputError(f"{source.where}: {both} are both in the checkpoint; which one holds?")
            if here:
                derived[name] = here[0]
    if not derived:
        return source
    return _SlicedDerived(source, derived) if isinstance(source, SlicedSource) else _WithDerived(source, derived)


class _WithDerived:
    """A source some of whose tensors are computed: {name: from what}."""

    def __init__(self, source: WeightSource, derived: Mapping[str, Derived]):
        self.where = source.where
        self._source, self._derived = source, derived

    def names(self) -> set[str]:
        used = {name for way in self._derived.values() for name in way.sources}
        return (self._source.names() - used) | self._derived.keys()

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        if name not in self._derived:
            return self._source.read(name, dtype)
        way = self._derived[name]
        stored = getattr(self._source, "as_stored", self._source.read)  # numbers of four bits are no floats
        try:
            return np.ascontiguousarray(way.make(*(stored(source) for source in way.sources)))
        except (ValueError, IndexError) as error:
            raise InputError(f"{self.where}: {way.sources[0]} has a shape that does not fit ({error})") from None


class _SlicedDerived(_WithDerived):
    """The same of a source that gives parts; what is computed is computed whole."""

    def __init__(self, source: SlicedSource, derived: Mapping[str, Derived]):
        super().__init__(source, derived)
        self._sliced = source

    def shape(self, name: str) -> tuple[int, ...]:
        return self.read(name).shape if name in self._derived else self._sliced.shape(name)

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self.read(name)[index] if name in self._derived else self._sliced.part(name, index)


def _experts_together(config: ModelConfig, source: WeightSource) -> WeightSource:
    """The source with the tensors of a layer's experts in one; as it is where a checkpoint has them so."""
    present, together = source.names(), {}
    for layer in range(config.num_layers):
        for name, own in expert_names(config, layer).items():
            here = [tensor for tensor in own if tensor in present]
            if here and name in present:
                raise InputError(f"{source.where}: {name} and {here[0]} are both in the checkpoint; which one holds?")
            if here:
                together[name] = own
    if not together:
        return source
    return _SlicedTogether(source, together) if isinstance(source, SlicedSource) else _Together(source, together)


class _Together:
    """A source some of whose tensors are those of all experts, or have another name: {name: the tensors}."""

    def __init__(self, source: WeightSource, together: Mapping[str, list[str]]):
        self.where = source.where
        self._source, self._together = source, together

    def names(self) -> set[str]:
        present = self._source.names()
        # Where an expert is missing, so is the tensor of all.
        whole = {name for name, own in self._together.items() if present.issuperset(own)}
        return (present - {tensor for name in whole for tensor in self._together[name]}) | whole

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        if name not in self._together:
            return self._source.read(name, dtype)
        own = self._together[name]
        if len(own) == 1:
            return self._source.read(own[0], dtype)
        return np.stack([self._source.read(tensor, dtype) for tensor in own])


class _SlicedTogether(_Together):
    """The same of a source that gives parts."""

    def __init__(self, source: SlicedSource, together: Mapping[str, list[str]]):
        super().__init__(source, together)
        self._sliced = source

    def shape(self, name: str) -> tuple[int, ...]:
        own = self._together.get(name, [name])
        shape = self._sliced.shape(own[0])
        return shape if len(own) == 1 else (len(own), *shape)

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        own = self._together.get(name, [name])
        if len(own) == 1:
            return self._sliced.part(own[0], index)
        return np.stack([self._sliced.part(tensor, index[1:]) for tensor in own[index[0]]])


def _apart(config: ModelConfig, source: WeightSource) -> WeightSource:
    """The source with fused parameters apart; as it is where none is."""
    present = source.names()
    parts: dict[str, tuple[str, FusedRows]] = {}
    for layer in range(config.num_layers):
        for fused, rows in fused_in_layer(config, layer).items():
            if fused in present:
                parts |= {part: (fused, at) for part, at in rows.items()}
    if both := sorted(parts.keys() & present):
        raise InputError(
            f"{source.where}: {both[0]} and {parts[both[0]][0]} are both in the checkpoint; which one holds?"
        )
    if not parts:
        return source
    return _SlicedApart(source, parts) if isinstance(source, SlicedSource) else _Apart(source, parts)


class _Apart:
    """A source whose fused parameters are tensors of their own: {name: (the tensor that it is in, its rows there)}."""

    def __init__(self, source: WeightSource, parts: Mapping[str, tuple[str, FusedRows]]):
        self.where = source.where
        self._source, self._parts = source, parts

    def names(self) -> set[str]:
        return (self._source.names() - {fused for fused, _ in self._parts.values()}) | self._parts.keys()

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        if name not in self._parts:
            return self._source.read(name, dtype)
        fused, rows = self._parts[name]
        whole = self._source.read(fused, dtype)
        if _is_grouped(whole.shape, rows):
            return np.ascontiguousarray(whole[:, rows.start : rows.stop])
        if whole.shape[:1] != (rows.groups * rows.size,):
            raise self._shape_error(fused, whole.shape, rows)
        grouped = whole.reshape(rows.groups, rows.size, *whole.shape[1:])[:, rows.start : rows.stop]
        return np.ascontiguousarray(grouped).reshape(-1, *whole.shape[1:])

    def _shape_error(self, fused: str, stored: tuple[int, ...], rows: FusedRows) -> InputError:
        needed = rows.groups * rows.size
        return InputError(f"{self.where}: {fused} has shape {tuple(stored)}, the configuration needs {needed} rows")


class _SlicedApart(_Apart):
    """The same of a source that gives parts."""

    def __init__(self, source: SlicedSource, parts: Mapping[str, tuple[str, FusedRows]]):
        super().__init__(source, parts)
        self._sliced = source

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._parts:
            return self._sliced.shape(name)
        fused, rows = self._parts[name]
        stored = self._sliced.shape(fused)
        if _is_grouped(stored, rows):
            return (rows.groups, rows.stop - rows.start, *stored[2:])
        if stored[:1] != (rows.groups * rows.size,):
            raise self._shape_error(fused, stored, rows)
        return (rows.groups * (rows.stop - rows.start), *stored[1:])

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        if name not in self._parts:
            return self._sliced.part(name, index)
        fused, rows = self._parts[name]
        if _is_grouped(self._sliced.shape(fused), rows):
            begin, end, _ = index[1].indices(rows.stop - rows.start)
            return self._sliced.part(fused, (index[0], slice(rows.start + begin, rows.start + end), *index[2:]))
        begin, end, _ = index[0].indices(self.shape(name)[0])
        own = rows.stop - rows.start
        first, last = begin // own, -(-end // own)  # the groups that hold these rows
        if rows.groups == 1:
            return self._sliced.part(fused, (slice(rows.start + begin, rows.start + end), *index[1:]))
        whole = self._sliced.part(fused, (slice(first * rows.size, last * rows.size), *index[1:]))
        grouped = whole.reshape(last - first, rows.size, *whole.shape[1:])[:, rows.start : rows.stop]
        flat = np.ascontiguousarray(grouped).reshape(-1, *whole.shape[1:])
        return flat[begin - first * own : end - first * own]


def _is_grouped(shape: tuple[int, ...], rows: FusedRows) -> bool:
    """Whether a tensor has its groups along an axis of their own, as those of experts do."""
    return len(shape) == 3 and shape[:2] == (rows.groups, rows.size)


class _Renamed:
    """A source under other names: {name: the name that it is stored under}."""

    def __init__(self, source: WeightSource, stored: Mapping[str, str]):
        self.where = source.where
        self._source, self._stored = source, stored

    def names(self) -> set[str]:
        return set(self._stored)

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        return self._source.read(self._stored[name], dtype)


class _SlicedRenamed(_Renamed):
    """The same of a source that gives parts."""

    def __init__(self, source: SlicedSource, stored: Mapping[str, str]):
        super().__init__(source, stored)
        self._sliced = source

    def shape(self, name: str) -> tuple[int, ...]:
        return self._sliced.shape(self._stored[name])

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self._sliced.part(self._stored[name], index)
