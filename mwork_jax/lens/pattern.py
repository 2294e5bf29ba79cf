"""Does the model go through English? A verdict on the pattern of the paper's Figure 1, by a rule that is written down.

The pattern: for prompts in another language, the inner layers say English, and the last layer the prompt's language.
For a language, over its prompts, with a margin of 5 points of share (labels of tokens are wrong now and then):

- inside: English's share of the top tokens less that of the prompt's language, mean over the inner half of the layers,
  is above the margin;
- at the end: the share of the prompt's language less that of English in the last layer is above the margin.

Both are t tests over prompts against the margin, p corrected over all of them (Holm). A language shows the pattern
where both are above the margin, contradicts it where one of them is below, and is undecided otherwise. Over languages
the pattern holds where none contradicts it and at least three, and three quarters of all, show it. It does not hold
where none shows it and three, and three quarters, contradict it. It differs where some show and some contradict it.
Without English among the labels, three other languages and five prompts in each there is no verdict. The layers are
fixed beforehand: those where English is highest would make the pattern of noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mwork_jax.metrics import ENGLISH, PairedDifference, corrected, paired_difference
from mwork_jax.results import Interval, LensResults, LensShares

MARGIN = 0.05  # of share
MIN_LANGUAGES, MIN_PROMPTS = 3, 5
_LEVEL = 0.05  # of the corrected p
_MOST = 0.75  # of the languages

Finding = Literal["shows it", "contradicts it", "undecided"]
Kind = Literal["holds", "does not hold", "differs", "undecided", "no verdict"]


@dataclass(frozen=True)
class Lead:
    """By how much one share is above another, mean over prompts; p: of its being the margin, corrected. None where they
    cannot be had."""

    value: float
    ci95: Interval | None
    p_holm: float | None

    @property
    def side(self) -> int:
        """1 above the margin, -1 below it, 0 where that is not told."""
        return 0 if self.p_holm is None or self.p_holm >= _LEVEL else int(np.sign(self.value - MARGIN))


@dataclass(frozen=True)
class OfLanguage:
    """One language's prompts. inside: English's lead in the inner layers; end: the language's lead in the last one."""

    prompts: int
    inside: Lead
    end: Lead

    @property
    def finding(self) -> Finding:
        sides = {self.inside.side, self.end.side}
        return "contradicts it" if -1 in sides else "shows it" if sides == {1} else "undecided"


@dataclass(frozen=True)
class Pattern:
    """The verdict. missing: why there is none, or why it is undecided."""

    kind: Kind
    languages: Mapping[str, OfLanguage]
    missing: tuple[str, ...] = ()

    def with_finding(self, finding: Finding) -> list[str]:
        return [lang for lang, one in self.languages.items() if one.finding == finding]


def english_pattern(lens: LensResults) -> Pattern:
    """The verdict on the original model's prompts in languages other than English."""
    shares = {s.language: s for s in lens.shares if not s.neurons_off and s.language != ENGLISH}
    missing = _missing(lens, shares)
    usable = {lang: s for lang, s in shares.items() if len(s.english_lead) > 1}
    languages = _of_languages(usable)
    if missing:
        return Pattern("no verdict", languages, missing)
    shown, against = (
        sum(one.finding == finding for one in languages.values()) for finding in ("shows it", "contradicts it")
    )
    enough = max(MIN_LANGUAGES, _MOST * len(languages))
    if shown and against:
        return Pattern("differs", languages)
    if shown >= enough or against >= enough:
        return Pattern("holds" if shown else "does not hold", languages)
    return Pattern("undecided", languages, ("more prompts, so that leads are told from the margin",))


def _missing(lens: LensResults, shares: Mapping[str, LensShares]) -> tuple[str, ...]:
    missing = []
    if ENGLISH not in lens.labels.columns:
        missing.append("English among the languages of the labels")
    if len(shares) < MIN_LANGUAGES:
        missing.append(f"prompts in {MIN_LANGUAGES} languages other than English (there are {len(shares)})")
    prompts = [data.items for lang, data in lens.provenance.data.items() if lang in shares]
    if min(prompts, default=MIN_PROMPTS) < MIN_PROMPTS:
        missing.append(f"{MIN_PROMPTS} prompts in each language (there are {min(prompts)})")
    if not missing and any(len(s.english_lead) < MIN_PROMPTS for s in shares.values()):
        missing.append("the leads of single prompts, which files of older versions lack: run mwork lens again")
    return tuple(missing)


def _of_languages(shares: Mapping[str, LensShares]) -> dict[str, OfLanguage]:
    leads = {lang: np.asarray(s.english_lead) * (1, -1) for lang, s in shares.items()}  # [prompts, 2], both to be > 0
    tests = [_against_margin(leads[lang][:, side]) for lang in leads for side in (0, 1)]
    made = [
        Lead(test.change + MARGIN, test.ci95 and (test.ci95[0] + MARGIN, test.ci95[1] + MARGIN), p)
        for test, p in zip(tests, corrected([test.p for test in tests]), strict=True)
    ]
    return {lang: OfLanguage(len(leads[lang]), *made[2 * i : 2 * i + 2]) for i, lang in enumerate(leads)}


def _against_margin(lead: np.ndarray) -> PairedDifference:
    """lead: [prompts], independent of each other."""
    return paired_difference({"lead": lead}, {"lead": np.full(lead.shape, MARGIN)})
