"""Neuron scores of several languages to language-specific neurons (sections 2 and 3.1 of the paper).

A neuron belongs to a language when it is activated for every document of it, or, with a tolerant rule, for at least a
given share of them. Any rule is answered from the order statistics; the documents are not needed again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mwork_jax.detect.importance import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import FFN_GROUPS, GROUPS, NeuronSet

KINDS = ("epsilon", "top_k", "top_fraction", "lape")
MODES = ("minus_english", "minus_shared", "all")
DEFAULT_RULE = "top_fraction:0.05"


@dataclass(frozen=True)
class Rule:
    """When a neuron counts as activated, and for which share of the documents it must be.

    epsilon: Imp >= value (the paper). top_k: among the `value` most important of its layer and group. top_fraction:
    among that fraction of them, rounded, at least one. lape (Tang et al., ACL 2024) looks at all languages at once:
    that fraction of the feed-forward neurons whose activation probabilities are the most unequal between languages.
    """

    kind: str
    value: float
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Reads `kind:value` or `kind:value@share`, as in `top_fraction:0.25@0.9`. Raises InputError for anything
        else."""
        kind, _, rest = text.partition(":")
        value, _, share = rest.partition("@")
        try:
            rule = cls(kind, float(value), float(share or 1.0))
        except ValueError:
            rule = cls("", math.nan)
        if not rule._makes_sense():
            forms = (
                "epsilon:X, top_k:K (whole), top_fraction:F (up to 1), each with @SHARE where fewer documents suffice, "
                "and lape:F (up to 1)"
            )
            raise InputError(f"rule {text!r} is not one of {forms}")
        return rule

    def _makes_sense(self) -> bool:
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
    rule = Rule.parse(rule) if isinstance(rule, str) else rule
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


def select_neurons(
    scores: Mapping[str, NeuronScores], rule: str | Rule = DEFAULT_RULE, mode: str = "minus_english"
) -> dict[str, NeuronSet]:
    """The neurons specific to each language: {language: NeuronSet}.

    mode: `minus_english` takes the neurons of English away from every other language (Tables 2 to 6; under "en" is
    English's whole set); `minus_shared` takes away what all the languages given share (the authors' code); `all` takes
    nothing away (the paper's Table 1). The rule lape compares the languages itself, and no mode takes anything
    away from what it finds. Raises InputError for an unknown mode, too few languages for it, or scores of
    different models.
    """
    if mode not in MODES:
        raise InputError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    if not scores:
        raise InputError("no scores to select from")
    rule = Rule.parse(rule) if isinstance(rule, str) else rule
    if rule.kind == "lape":
        return _lape(scores, rule)
    if mode == "minus_english" and ENGLISH not in scores:
        raise InputError(f"mode minus_english needs scores of {ENGLISH!r}; there are {', '.join(scores)}")
    if mode == "minus_shared" and len(scores) < 2:
        raise InputError("mode minus_shared needs at least two languages")
    _check_alike(scores)
    active = {language: activated(s, rule) for language, s in scores.items()}
    if mode == "all":
        taken = dict.fromkeys(active)
    elif mode == "minus_english":
        taken = {language: None if language == ENGLISH else active[ENGLISH] for language in active}
    else:
        shared = _shared(active)
        taken = dict.fromkeys(active, shared)
    return {language: _specific(language, own, taken[language], mode) for language, own in active.items()}


_OFTEN = 0.95  # LAPE: a neuron acts in a language when it acts more often there than this share of all probabilities


def _lape(scores: Mapping[str, NeuronScores], rule: Rule) -> dict[str, NeuronSet]:
    """Language activation probability entropy: of the neurons that act often in some language, those whose
    probabilities, normalised over the languages, have the lowest entropy; each belongs where it acts often."""
    if len(scores) < 2:
        raise InputError("rule lape compares languages; it needs at least two")
    _check_alike(scores)
    probability = np.stack([s.active for s in scores.values()]).astype(np.float64)
    often = probability > np.quantile(probability, _OFTEN)
    share = probability / np.maximum(probability.sum(axis=0), 1e-300)
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-300)), axis=0)
    entropy[~often.any(axis=0)] = np.inf
    wanted = max(1, round(rule.value * entropy.size))
    lowest = np.argsort(entropy, axis=None, kind="stable")[:wanted]
    chosen = np.zeros(entropy.size, bool)
    chosen[lowest] = np.isfinite(entropy.flat[lowest])
    chosen = chosen.reshape(entropy.shape)
    found = {}
    for language, acts, of in zip(scores, often, scores.values(), strict=True):
        groups = {g: chosen & acts if g in FFN_GROUPS else np.zeros(of.mean[g].shape, bool) for g in GROUPS}
        made = {**of.provenance, "documents": of.documents, "tokens": of.tokens, "rule": str(rule)}
        found[language] = NeuronSet(groups, {**made, "language": language, "mode": "all"})
    return found


def _check_alike(scores: Mapping[str, NeuronScores]) -> None:
    """Scores are comparable only where they are of one model and were made in the same way."""
    first, *others = scores

    def made(language: str, name: str) -> object:
        value = scores[language].provenance.get(name)
        # One model may be given by paths that are spelled differently.
        return {k: v for k, v in value.items() if k != "source"} if isinstance(value, Mapping) else value

    for name in ("model", "include_bos", "max_tokens"):
        for other in others:
            if made(first, name) != made(other, name):
                kind = "of different models" if name == "model" else f"made with different {name}"
                raise InputError(f"the scores of {first!r} and {other!r} are {kind}; score both anew in the same way")


def _shared(active: Mapping[str, NeuronSet]) -> NeuronSet:
    groups = {g: np.logical_and.reduce([own.groups[g] for own in active.values()]) for g in GROUPS}
    return NeuronSet(groups)


def _specific(language: str, own: NeuronSet, taken: NeuronSet | None, mode: str) -> NeuronSet:
    groups = (own if taken is None else own - taken).groups
    return NeuronSet(groups, {**own.provenance, "language": language, "mode": mode})
