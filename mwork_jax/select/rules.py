"""Rules: when a neuron counts as activated for a language (section 2 of the paper).

It is activated for a language when it is activated for every document of it, or, with a tolerant rule, for at least a
given share of them. Any rule is applied to the order statistics; the documents are not needed again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from mwork_jax.detect.scores import DEFAULT_KEPT, NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.neurons import GROUPS, NeuronSet

KINDS = ("epsilon", "top_k", "top_fraction", "lape")
DEFAULT_RULE = "top_fraction:0.05"
_FORMS = (
    "epsilon:X, top_k:K (whole), top_fraction:F (up to 1), each with @SHARE where fewer documents suffice, "
    "and lape:F (up to 1)"
)


@dataclass(frozen=True)
class Rule:
    """When a neuron counts as activated, and for which share of the documents it must be.

    epsilon: Imp >= value (the paper). top_k: among the `value` most important of its layer and group. top_fraction:
    among that fraction of them, rounded, at least one. lape (Tang et al., ACL 2024) compares all languages:
    that fraction of the feed-forward neurons whose activation probabilities are the most unequal between languages.
    """

    kind: str
    value: float
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self._makes_sense():
            raise InputError(f"rule {self.kind!r:.40}, {self.value!r:.40}, {self.share!r:.40} is not one of {_FORMS}")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Reads `kind:value` or `kind:value@share`, as in `top_fraction:0.25@0.9`. Raises InputError for anything
        else."""
        try:
            kind, _, rest = text.partition(":")
            value, _, share = rest.partition("@")
            return cls(kind, float(value), float(share or 1.0))
        except (AttributeError, ValueError):
            raise InputError(f"rule {text!r:.80} is not one of {_FORMS}") from None

    @classmethod
    def of(cls, rule: str | Rule) -> Rule:
        """The rule, parsed where it is a text."""
        return rule if isinstance(rule, Rule) else cls.parse(rule)

    def _makes_sense(self) -> bool:
        numbers = (self.value, self.share)
        if any(isinstance(number, bool) or not isinstance(number, Real) for number in numbers):
            return False
        if self.kind not in KINDS or not (0 < self.value < math.inf and 0 < self.share <= 1):
            return False
        return {
            "top_k": self.value == round(self.value),
            "top_fraction": self.value <= 1,
            "lape": self.value <= 1 and self.share == 1,
        }.get(self.kind, True)

    def missing(self, documents: int) -> int:
        """How many of so many documents may miss a neuron that still counts as activated; scores must remember one
        more (`kept`)."""
        return math.floor((1 - self.share) * documents + 1e-9)

    def __str__(self) -> str:
        value, share = (repr(float(number)).removesuffix(".0") for number in (self.value, self.share))
        return f"{self.kind}:{value}" + ("" if self.share == 1 else f"@{share}")


def activated(scores: NeuronScores, rule: str | Rule) -> NeuronSet:
    """The neurons activated for at least the rule's share of the documents.

    At most floor((1 - share) * documents) documents may miss a neuron; the order statistic after them decides. Raises
    InputError where more may miss it than the scores remember.
    """
    rule = Rule.of(rule)
    if rule.kind == "lape":
        raise InputError(f"rule {rule} compares languages; use it with select_neurons")
    missing = rule.missing(scores.documents)
    if missing >= scores.kept:
        raise InputError(
            f"rule {rule}: up to {missing} of {scores.documents} documents may miss a neuron, "
            f"the scores remember {scores.kept}; score again with kept={missing + 1} "
            f"(`mwork detect --kept {missing + 1}`)"
        )
    groups = {}
    for group in GROUPS:
        if rule.kind == "epsilon":
            groups[group] = scores.lowest[group][missing] >= rule.value
        else:
            width = scores.worst_rank[group].shape[-1]
            limit = rule.value if rule.kind == "top_k" else max(1, round(rule.value * width))
            groups[group] = scores.worst_rank[group][missing] < limit
    return NeuronSet(
        groups, {**scores.provenance, "documents": scores.documents, "tokens": scores.tokens, "rule": str(rule)}
    )


def kept_needed(rule: str | Rule, documents: int) -> int:
    """How many documents scores must remember per neuron so that a rule can be applied to so many documents; at least
    DEFAULT_KEPT."""
    rule = Rule.of(rule)
    return max(DEFAULT_KEPT, rule.missing(documents) + 1)
