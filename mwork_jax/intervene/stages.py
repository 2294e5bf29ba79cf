"""Which neurons to switch off: the four parts of the paper's workflow, and random controls.

Understanding is the first N1 layers with all their groups; task-solving the middle layers, its attention (q, k, v) and
its feed-forward (up, down) apart; generation the last N2 layers with all their groups (sections 3.3 to 3.6).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from mwork_jax.errors import InputError
from mwork_jax.neurons import ATTENTION_GROUPS, FFN_GROUPS, NeuronSet


@dataclass(frozen=True)
class StageSplit:
    """Where the stages begin and end: the first `understanding` (N1) and the last `generation` (N2) of `layers`
    layers."""

    layers: int
    understanding: int
    generation: int

    def __post_init__(self) -> None:
        if min(self.understanding, self.generation) < 0 or self.understanding + self.generation > self.layers:
            raise InputError(
                f"N1 = {self.understanding} and N2 = {self.generation} do not fit a model of {self.layers} layers; "
                "both must be at least 0 and their sum at most the number of layers"
            )

    @classmethod
    def default(cls, layers: int) -> StageSplit:
        """A quarter and an eighth of the layers, rounded, at least one: 8 and 4 of 32, the paper's only example."""
        first = max(1, round(layers / 4))
        return cls(layers, first, min(max(1, round(layers / 8)), layers - first))

    @classmethod
    def of(cls, layers: int, understanding: int | None, generation: int | None) -> StageSplit:
        """The split with N1 and N2 as given, the default where None."""
        default = cls.default(layers)
        first = default.understanding if understanding is None else understanding
        return cls(layers, first, default.generation if generation is None else generation)


@dataclass(frozen=True)
class StageSetting:
    """Which parts are deactivated: a row of Tables 2 to 5. True means off."""

    under: bool = False
    s_attn: bool = False
    s_ffn: bool = False
    gen: bool = False

    @classmethod
    def parse(cls, text: str) -> StageSetting:
        """The setting of names with + or , between them, as in "under+gen"; "all" is every part. Raises InputError for
        another name."""
        known = tuple(cls.__dataclass_fields__)
        names = known if text.strip() == "all" else tuple(name.strip() for name in re.split("[+,]", text))
        if wrong := [name for name in names if name not in known]:
            raise InputError(f"off {text:.60}: {wrong[0]!r:.40} is not one of all, {', '.join(known)}")
        return cls(**dict.fromkeys(names, True))

    @property
    def name(self) -> str:
        """The parts that are off, as `parse` reads them."""
        return "+".join(part for part, is_off in asdict(self).items() if is_off)

    def choose(self, neurons: NeuronSet, split: StageSplit) -> NeuronSet:
        """The neurons of the set that this setting switches off. Raises InputError where the split is for another
        depth."""
        if split.layers != neurons.num_layers:
            raise InputError(f"the stages are for {split.layers} layers, the neuron set has {neurons.num_layers}")
        first, last = split.understanding, split.layers - split.generation
        middle = neurons.in_layers(first, last)
        parts = {
            "under": neurons.in_layers(0, first),
            "s_attn": middle.in_groups(*ATTENTION_GROUPS),
            "s_ffn": middle.in_groups(*FFN_GROUPS),
            "gen": neurons.in_layers(last, split.layers),
        }
        switched_off = neurons.none()
        for name, part in parts.items():
            if getattr(self, name):
                switched_off = switched_off | part
        return NeuronSet(
            switched_off.groups, {**neurons.provenance, "off": [name for name in parts if getattr(self, name)]}
        )


EVERYWHERE = StageSetting(under=True, s_attn=True, s_ffn=True, gen=True)
EACH_STAGE = {
    "under": StageSetting(under=True),
    "s_attn": StageSetting(s_attn=True),
    "s_ffn": StageSetting(s_ffn=True),
    "gen": StageSetting(gen=True),
}
