"""From scores to Delta (section 3.2) and to differences, with 95 % intervals over clusters of items and random draws.

Scores are per item, higher being better. How an interval comes about is in `mwork_jax.metrics.contrasts`: a t interval
on the variance between clusters and between random sets. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.metrics.contrasts import Sample, Term, estimate, sample

ENGLISH = "en"

ScoresByLanguage = Mapping[str, np.ndarray]
Groups = Mapping[str, Sequence[Hashable] | np.ndarray]


@dataclass(frozen=True)
class Delta:
    """What a deactivation does to English and to the other languages.

    eng, n_eng: the scores after deactivation; delta_eng, delta_n_eng: minus the originals, negative = worse;
    delta = delta_eng - delta_n_eng: high where the deactivation spares English and hurts the languages. *_ci95: 95 %
    intervals, and p: of delta being 0, two-sided; each None where no interval can be had (see `delta`). n_items: over
    all languages; n_clusters: different clusters among them; n_seeds: random sets per language (the fewest of any), 0
    where the neurons are not random. p_eng, p_n_eng: of delta_eng and delta_n_eng being 0.
    """

    eng: float
    n_eng: float
    delta_eng: float
    delta_n_eng: float
    delta: float
    delta_eng_ci95: tuple[float, float] | None
    delta_n_eng_ci95: tuple[float, float] | None
    delta_ci95: tuple[float, float] | None
    p: float | None
    n_items: int
    languages: tuple[str, ...]
    n_clusters: int
    n_seeds: int
    p_eng: float | None = None
    p_n_eng: float | None = None


@dataclass(frozen=True)
class PairedDifference:
    """The mean of a difference on the same items, in the unit of the scores.

    ci95: 95 %, p: two-sided, of no difference; None where no interval can be had. n_clusters, n_seeds: as in `Delta`.
    """

    change: float
    ci95: tuple[float, float] | None
    p: float | None
    n_clusters: int
    n_seeds: int


def delta(
    original: ScoresByLanguage,
    deactivated: Mapping[str, ScoresByLanguage],
    weights: ScoresByLanguage | None = None,
    groups: Groups | None = None,
    *,
    same_sets: bool = False,
) -> Delta:
    """Delta = Delta_Eng - Delta_n-Eng of one deactivation setting.

    original: {language: scores [items]}, English ("en") included. deactivated: for each other language l, whose own
    neurons were off, {"en": scores of English in that run, l: scores of l}; the items are the same and in the same
    order as in `original`. For random neurons the scores are [seeds, items], one row for each random set; languages
    have sets of their own.
    weights: {language: weight of each item}, for means that are not over items alike (tokens, for a loss per token).
    groups: {language: ids [items]}. Items with equal ids are one cluster, in one language (questions on one passage)
    and across languages (a document and its translations). None: every item is independent of every other one, which
    is wrong for parallel items. same_sets: the languages have one random set in each draw, instead of one each.

    Delta_n-Eng averages over the languages; Delta_Eng averages English's change over the same runs. An item keeps its
    scores before and after, so what both share cancels. Intervals and p are None with fewer than 5 random sets, where
    a language has a single cluster, and where all clusters show the same change other than 0; where nothing changed
    at all they are (0, 0) and 1. Raises InputError where a language or English is missing or numbers do not fit.
    """
    languages = tuple(deactivated)
    if not languages or ENGLISH in languages:
        raise InputError("deactivated: one entry for each language other than 'en' is needed, and at least one")
    before = {lang: _items(original, lang, "original") for lang in (ENGLISH, *languages)}
    after = {lang: _run(deactivated[lang], lang, f"deactivated[{lang!r}]", before, "original") for lang in languages}
    items = sample({lang: scores.shape[-1] for lang, scores in before.items()}, weights, groups)
    share = 1 / len(languages)
    draws = _names_of_draws(languages, same_sets)
    english = [_term(share, ENGLISH, after[lang][ENGLISH] - before[ENGLISH], draws[lang]) for lang in languages]
    others = [_term(share, lang, after[lang][lang] - before[lang], draws[lang]) for lang in languages]
    delta_eng, delta_n_eng, both = (
        estimate(terms, items) for terms in (english, others, [*english, *map(_negative, others)])
    )
    return Delta(
        eng=_mean(items, [(ENGLISH, after[lang][ENGLISH]) for lang in languages]),
        n_eng=_mean(items, [(lang, after[lang][lang]) for lang in languages]),
        delta_eng=delta_eng.value,
        delta_n_eng=delta_n_eng.value,
        delta=both.value,
        delta_eng_ci95=delta_eng.ci95,
        delta_n_eng_ci95=delta_n_eng.ci95,
        delta_ci95=both.ci95,
        p=both.p,
        n_items=items.n_items,
        languages=languages,
        n_clusters=items.n_clusters,
        n_seeds=_fewest_draws(run[lang] for lang, run in after.items()),
        p_eng=delta_eng.p,
        p_n_eng=delta_n_eng.p,
    )


def paired_difference(
    scores: ScoresByLanguage,
    reference: ScoresByLanguage,
    weights: ScoresByLanguage | None = None,
    groups: Groups | None = None,
    *,
    single_draw: bool = False,
    same_sets: bool = False,
) -> PairedDifference:
    """The mean of scores - reference on the same items, averaged over the languages.

    scores, reference: {language: [items]}, or [seeds, items] on either side or both (random sets, or tunings with
    other random seeds), each row an independent draw; draws of the two sides and, without same_sets, of
    different languages are independent. weights, groups, same_sets: as in `delta`.
    single_draw: one side is [items] of a single set, to be compared as if it were one more draw of what the other side
    drew: its own deviation from what such sets show on average counts as chance, estimated from the other side's draws.
    False: the single set is taken as it is, so that any set that is not exactly average differs in the long run.

    Intervals and p are None as in `delta`. Raises InputError where the languages or the numbers of items differ.
    """
    if not scores or set(scores) != set(reference):
        raise InputError(f"scores are of {_names(scores)}, the reference is of {_names(reference)}; both need the same")
    sides = {"scores": scores, "reference": reference}
    values = {name: {lang: _items(side, lang, name, draws=True) for lang in scores} for name, side in sides.items()}
    for lang in scores:
        _same_items(values["reference"][lang], lang, "reference", values["scores"][lang], "scores")
        if single_draw and values["scores"][lang].ndim == values["reference"][lang].ndim:
            raise InputError(f"{lang!r}: single_draw needs [items] on one side and [seeds, items] on the other")
    items = sample({lang: x.shape[-1] for lang, x in values["scores"].items()}, weights, groups)
    share = 1 / len(scores)
    if all(x.ndim == 1 for side in values.values() for x in side.values()):
        # One difference per item, so that equal scores give exactly 0.
        terms = [_term(share, lang, values["scores"][lang] - values["reference"][lang], None) for lang in scores]
    else:
        draws = _names_of_draws(tuple(scores), same_sets)
        terms = [
            _term(sign * share, lang, x, (name, draws[lang]))
            for sign, name in ((1, "scores"), (-1, "reference"))
            for lang, x in values[name].items()
        ]
    return _paired(terms, items, (x for side in values.values() for x in side.values()), single_draw)


def beyond_random(
    own: Mapping[str, ScoresByLanguage],
    random: Mapping[str, ScoresByLanguage],
    weights: ScoresByLanguage | None = None,
    groups: Groups | None = None,
    *,
    same_sets: bool = False,
) -> PairedDifference:
    """How much higher Delta is with the languages' own neurons off than with random sets of the same size off.

    own: {l: {"en": [items], l: [items]}}, as `deactivated` of `delta`. random: {l: {"en": [seeds, items], l: [seeds,
    items]}}, for the same languages and items. weights, groups, same_sets: as in `delta`. The scores of the original
    model cancel item by item, so they are not needed.

    An own set is compared as one set: its null hypothesis is that it is a random set like the others. So its own
    deviation counts as chance, as large as the spread of the random sets; comparing it with their mean alone would find
    nearly every random set to differ from the average of random sets. With fewer than 5 seeds there is the change only.
    Raises InputError as `delta`, and for `random` without seeds.
    """
    if not own or ENGLISH in own or set(own) != set(random):
        raise InputError(
            f"own neurons of {_names(own)}, random ones of {_names(random)}; both need the same languages but 'en'"
        )
    languages = tuple(own)
    first: dict[str, np.ndarray] = {}
    for lang in languages:
        for scored in (ENGLISH, lang):
            first.setdefault(scored, _items(own[lang], scored, f"own[{lang!r}]"))
    ours = {lang: _run(own[lang], lang, f"own[{lang!r}]", first, "own") for lang in languages}
    theirs = {lang: _run(random[lang], lang, f"random[{lang!r}]", first, "own") for lang in languages}
    for lang in languages:
        if ours[lang][lang].ndim != 1 or theirs[lang][lang].ndim != 2:
            raise InputError(f"{lang!r}: own scores must be [items] and random ones [seeds, items]")
    items = sample({lang: len(scores) for lang, scores in first.items()}, weights, groups)
    share = 1 / len(languages)
    draws = _names_of_draws(languages, same_sets)
    terms = [
        _term(sign * share, scored, ours[lang][scored] - theirs[lang][scored], draws[lang])
        for lang in languages
        for sign, scored in ((1, ENGLISH), (-1, lang))
    ]
    return _paired(terms, items, (theirs[lang][lang] for lang in languages), single_draw=True)


@dataclass(frozen=True)
class RunsDifference:
    """By how much one deactivation's scores are above another's: English's, the other languages', and Delta, the first
    less the second. eng and delta are None without English."""

    eng: PairedDifference | None
    n_eng: PairedDifference
    delta: PairedDifference | None


def runs_difference(
    first: Mapping[str, ScoresByLanguage],
    second: Mapping[str, ScoresByLanguage],
    weights: ScoresByLanguage | None = None,
    groups: Groups | None = None,
    *,
    same_sets: bool = False,
) -> RunsDifference:
    """How two deactivations of the same languages differ, paired over items.

    first, second: as `deactivated` of `delta`, each with scores [items], or [seeds, items] of random sets; English may
    be missing everywhere. Draws of the two sides are independent. Where one side has random sets and the other a single
    one, that one counts as one more draw, as in `beyond_random`. weights, groups, same_sets: as in `delta`. Raises
    InputError where the languages or the numbers of items differ.
    """
    if not first or set(first) != set(second):
        raise InputError(f"runs are of {_names(first)} and {_names(second)}; both need the same languages")
    languages, has_english = tuple(first), all(ENGLISH in run for side in (first, second) for run in side.values())
    scored = [(lang, at) for lang in languages for at in ((ENGLISH, lang) if has_english else (lang,))]
    sides = ((1, "first", first), (-1, "second", second))
    terms: dict[tuple[str, str], list[Term]] = {one: [] for one in scored}
    sizes: dict[str, int] = {}
    for sign, name, runs in sides:
        draws = _names_of_draws(languages, same_sets)
        for lang, at in scored:
            x = _items(runs[lang], at, f"{name}[{lang!r}]", draws=True)
            if sizes.setdefault(at, x.shape[-1]) != x.shape[-1]:
                raise InputError(f"{name}[{lang!r}]: {x.shape[-1]} items of {at!r}, elsewhere {sizes[at]}")
            terms[lang, at].append(_term(sign / len(languages), at, x, (name, draws[lang])))
    items = sample(sizes, weights, groups)
    kinds = {term.draws is None for each in terms.values() for term in each}

    def difference(part: Sequence[Term]) -> PairedDifference:
        return _paired(part, items, (term.scores for term in part), single_draw=len(kinds) == 2)

    n_eng = [term for (lang, at), each in terms.items() if at == lang for term in each]
    eng = [term for (lang, at), each in terms.items() if at != lang for term in each]
    both = [*eng, *map(_negative, n_eng)]
    return RunsDifference(difference(eng) if eng else None, difference(n_eng), difference(both) if eng else None)


def _paired(terms: Sequence[Term], items: Sample, drawn: Iterable[np.ndarray], single_draw: bool) -> PairedDifference:
    change = estimate(terms, items, single_draw=single_draw)
    return PairedDifference(change.value, change.ci95, change.p, items.n_clusters, _fewest_draws(drawn))


def _term(coefficient: float, language: str, scores: np.ndarray, draws: Hashable) -> Term:
    return Term(coefficient, language, scores, draws if scores.ndim == 2 else None)


def _negative(term: Term) -> Term:
    return Term(-term.coefficient, term.language, term.scores, term.draws)


def _names_of_draws(languages: Sequence[str], same_sets: bool) -> dict[str, str]:
    """{language: the name of its draws}: draws of one name are of the same sets."""
    return dict.fromkeys(languages, "all") if same_sets else {lang: lang for lang in languages}


def _fewest_draws(scores: Iterable[np.ndarray]) -> int:
    return min((len(x) for x in scores if x.ndim == 2), default=0)


def _mean(items: Sample, scores: Sequence[tuple[str, np.ndarray]]) -> float:
    """Mean over (language, scores) of each one's mean over items and draws."""
    return float(np.mean([np.mean(x @ items.items[lang].shares) for lang, x in scores]))


def _names(scores: Iterable[str]) -> str:
    return ", ".join(map(repr, scores)) or "no language"


def _run(
    run: ScoresByLanguage, language: str, where: str, reference: ScoresByLanguage, name: str
) -> dict[str, np.ndarray]:
    """The scores of English and of a language with that language's neurons off, on the items of `reference`, which
    errors call `name`."""
    scores = {lang: _items(run, lang, where, draws=True) for lang in (ENGLISH, language)}
    for lang, x in scores.items():
        _same_items(x, lang, where, reference[lang], name)
    if scores[ENGLISH].shape[:-1] != scores[language].shape[:-1]:
        raise InputError(f"{where}: 'en' and {language!r} need the same random sets, row by row")
    return scores


def _items(scores: ScoresByLanguage, language: str, where: str, *, draws: bool = False) -> np.ndarray:
    """Scores of a language as floats, [items] or, with `draws`, [seeds, items] too."""
    if language not in scores:
        raise InputError(f"{where}: scores of {language!r} are missing")
    values = np.asarray(scores[language], float)
    if values.ndim not in ((1, 2) if draws else (1,)) or not values.size:
        wanted = "[items] or [seeds, items]" if draws else "[items]"
        raise InputError(f"{where}: scores of {language!r} must be {wanted}, not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"{where}: scores of {language!r} hold NaN or infinity; leave such items out")
    return values


def _same_items(scores: np.ndarray, language: str, where: str, reference: np.ndarray, name: str) -> None:
    if scores.shape[-1] != reference.shape[-1]:
        raise InputError(f"{where}: {scores.shape[-1]} items of {language!r}, where {name} has {reference.shape[-1]}")
