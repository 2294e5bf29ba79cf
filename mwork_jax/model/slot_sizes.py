"""How many slots there are, and for how many tokens: what pays on a platform, as far as the memory goes; and what is
done where it does not go so far."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.errors import InputError, InputWarning
from mwork_jax.model.admission import Pair
from mwork_jax.model.attention import KEY_BLOCK
from mwork_jax.model.decoder import Decoder
from mwork_jax.model.model import Model
from mwork_jax.model.parameters import weight_bytes
from mwork_jax.runtime.distributed import agreed, several
from mwork_jax.runtime.files import read_json, write_json
from mwork_jax.sharding import MODEL, mesh_of, parts_of, size_of

_BATCHES = 12  # of a batch's tokens, that slots hold
_FEWEST = 2  # below which a CPU's products no longer treat every row alike
_MEMORY_FILE = "memory.json"
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
T = TypeVar("T")


class Sizes(NamedTuple):
    """Shapes of the slots: how many each group of devices has, for how many tokens each, and how many of them are
    decoded at a time, 0 for all. Those in the others have their prompts behind them and wait, so that prompts go
    through many at once, and a row that is done is followed by another at once."""

    slots: int
    time: int
    decoded: int = 0

    @property
    def rows(self) -> int:
        """How many rows of a group take a step together."""
        return self.decoded or self.slots


class Room(NamedTuple):
    """How many rows pay on a platform: decoded together, and waiting. few: as many as are decoded together where there
    are no more."""

    decoded: int
    waiting: int
    few: tuple[int, ...] = (4,)

    @property
    def slots(self) -> int:
        """All together."""
        return self.decoded + self.waiting


CPU, ACCELERATOR = Room(32, 32, (4, 16)), Room(64, 32)


def groups_of(decoder: Decoder) -> int:
    """How many groups of devices have rows, and with them slots, of their own."""
    return parts_of(mesh_of(decoder), "slots")


def sizes_for(
    model: Model, lengths: Sequence[int], rows: int, tokens_per_batch: int
) -> Iterator[tuple[list[int], Sizes]]:
    """(places of the prompts, their slots): as many slots as pay on this platform, and as there is room for. lengths:
    of the prompts, with what is generated; rows: pairs of each; tokens_per_batch: a twelfth of the tokens that slots
    may hold."""
    decoder = model.decoder
    room = min(_BATCHES * tokens_per_batch, tokens_that_fit(decoder, model.memory))
    yield from sizes_within(lengths, rows, groups_of(decoder), CPU if on_cpu(decoder) else ACCELERATOR, room)


def worked_off(
    sizes: Sizes, pairs: Sequence[Pair], work: Callable[[Sizes, Sequence[Pair]], Iterator[tuple[Pair, T]]]
) -> Iterator[tuple[Pair, T]]:
    """What `work` yields of every pair. Where a device's memory does not suffice, the pairs that are left go through
    half as many slots, and a warning says so. With several processes the error is raised: the others would wait.

    Where results depend on shapes (see `on_cpu`), those after the warning may differ in their last bits from those of a
    run with room enough."""
    left = dict.fromkeys(pairs)
    while True:
        try:
            for pair, result in work(sizes, list(left)):
                del left[pair]
                yield pair, result
            return
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or sizes.slots <= _FEWEST or several():
                raise
        fewer, decoded = (max(_FEWEST, count // 2) for count in (sizes.slots, sizes.rows))
        line = f"the device's memory does not suffice for {sizes.slots} rows at once: going on with {fewer}"
        warnings.warn(line, InputWarning, stacklevel=2)
        sizes = Sizes(fewer, sizes.time, min(fewer, decoded))


def sizes_within(
    lengths: Sequence[int], rows: int, groups: int, most: Room, tokens: int
) -> Iterator[tuple[list[int], Sizes]]:
    """(places of the prompts, their slots): those that are short enough for as many slots as pay together, the longer
    ones by powers of two, in fewer slots, of which the same share is decoded."""
    shares = max(tokens // most.slots, KEY_BLOCK)
    classes: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        own = 0 if length <= shares else int(np.ceil(np.log2(length)))
        classes.setdefault(own, []).append(place)
    for own in sorted(classes):
        places = classes[own]
        longest = max(lengths[place] for place in places)
        time = time_for(longest)
        wanted = -(-len(places) * rows // groups)
        fitting = min(most.slots, max(_FEWEST, tokens // time))
        few = next((count for count in (*most.few, most.decoded) if wanted <= count), None)
        if few is not None:
            yield places, Sizes(min(fitting, few), time, min(fitting, few))
        else:
            yield places, Sizes(fitting, time, max(_FEWEST, fitting * most.decoded // most.slots))


def time_for(length: int) -> int:
    """The time of slots for rows of so many tokens: KEY_BLOCK times a power of two, or one and a half of it. Room that
    no row needs costs memory and no work; another time is another program."""
    time = KEY_BLOCK
    while time < length:
        time *= 2
    return time // 4 * 3 if time > KEY_BLOCK and time // 4 * 3 >= length and time // 4 * 3 % KEY_BLOCK == 0 else time


def on_cpu(decoder: Decoder) -> bool:
    """Whether the model's arrays lie on CPUs. There, a product computes each of its rows alike, however many there are
    from 2 on, so shapes may follow the work. Elsewhere, that is only sure of one shape."""
    return next(iter(decoder.embed[...].devices())).platform == "cpu"


def with_recorded_memory(model: Model, folder: Path) -> Model:
    """The model with the memory that the first start of a run found, recorded in the run's folder: what goes on later,
    perhaps on a device with more, has slots of the same shapes, and so the same bits. On CPUs results do not depend on
    shapes, so nothing is recorded; nor where the memory is given."""
    if model.memory is not None or on_cpu(model.decoder):
        return model

    def recorded() -> int | None:
        with suppress(InputError):
            known = read_json(folder / _MEMORY_FILE) if (folder / _MEMORY_FILE).exists() else None
            if isinstance(known, dict) and isinstance(known.get("bytes"), int) and known["bytes"] > 0:
                return known["bytes"]
        if limit := _device_memory(model.decoder):
            write_json(folder / _MEMORY_FILE, {"bytes": limit})
        return limit

    return replace(model, memory=agreed(recorded) or None)


def _device_memory(decoder: Decoder) -> int | None:
    """Bytes of one of this process's devices, on CPUs of the machine; None or 0 where nobody says."""
    device = next(iter(decoder.embed[...].addressable_shards)).device
    return (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else _memory_here()


def tokens_that_fit(decoder: Decoder, memory: int | None = None) -> int:
    """For how many tokens a device has room in its slots: half of its memory that the weights leave, on CPUs half of
    the machine's; the rest is for what is computed. memory: bytes of a device that may be used, in place of all. In
    every process of a run as in the first."""

    def fitting() -> int:
        limit = memory or _device_memory(decoder)
        if not limit:
            return 1 << 30
        config, mesh = decoder.config, mesh_of(decoder)
        weights = weight_bytes(config, decoder.dtype, mesh, decoder.int8)
        shards = size_of(mesh, MODEL) if config.num_kv_heads % size_of(mesh, MODEL) == 0 else 1
        each = 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(decoder.dtype).itemsize
        return max(1, int((limit - weights) / 2 / (each / shards)))

    return agreed(fitting)


def _memory_here() -> int:
    """Bytes of this machine's memory, or of a container's share of it; 0 where the system does not say."""
    found = [int(text) for path in _CONTAINER_LIMITS if (text := _text_of(path)).isdecimal()]
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=0)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""
