"""What TPU chips can do, from their makers' public specifications, and the slices that they come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from mwork_jax.errors import InputError


@dataclass(frozen=True)
class Chip:
    """One kind of chip. Peaks are those of the specification, which no program reaches.

    flops: bfloat16, per second. hbm: bytes per second. hbm_gib: memory. ici: bytes per second that a chip sends to its
    neighbours, one direction of all links together. vector: element-wise operations per second (assumed, see CHIPS).
    """

    name: str
    flops: float
    hbm: float
    hbm_gib: float
    ici: float
    vector: float
    slices: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# Peak bfloat16, HBM size and bandwidth, and inter-chip bandwidth (1,600, 4,800 and 3,584 Gbit/s per chip) are from the
# pages "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation, read in November 2026. The vector unit is not
# specified there: 8 x 128 lanes with 4 operations per cycle at 1.5 to 1.75 GHz (two such cores on v5p) is assumed.
CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 819e9, 16, 200e9, 6.1e12, _FLAT),
        Chip(
            "v5p", 459e12, 2765e9, 95, 600e9, 14.3e12,
            ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
        ),
        Chip("v6e", 918e12, 1640e9, 32, 448e9, 7.2e12, _FLAT),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """Some chips of one kind, wired as a grid: `v5e:4x4`."""

    chip: Chip
    grid: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Raises InputError for a chip or a shape that is not known."""
        name, _, shape = text.partition(":")
        chip = CHIPS.get(name)
        if chip is None:
            raise InputError(f"--topology {text}: chip {name!r} is not one of {', '.join(CHIPS)}, as in v5e:4x4")
        parts = shape.split("x")
        dimensions = len(chip.slices[0].split("x"))
        if len(parts) != dimensions or not all(p.isdecimal() and int(p) > 0 for p in parts):
            raise InputError(
                f"--topology {text}: {dimensions} sizes are needed after {name}:, such as {', '.join(chip.slices)}"
            )
        return cls(chip, tuple(map(int, parts)))

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.grid))}"

    @property
    def count(self) -> int:
        return prod(self.grid)

    def siblings(self) -> list[Slice]:
        """All usual slices of this chip, the smallest first."""
        return [Slice.parse(f"{self.chip.name}:{shape}") for shape in self.chip.slices]
