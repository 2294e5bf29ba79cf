"""Figure 1 as a table, and the verdict on its pattern."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from mwork_jax.lens.logit_lens import inner_layers
from mwork_jax.lens.pattern import MARGIN, Lead, Pattern, english_pattern
from mwork_jax.lens.vocabulary import REST
from mwork_jax.metrics import ENGLISH
from mwork_jax.report.language_names import name_of
from mwork_jax.report.table import Table
from mwork_jax.report.tables.cells import NONE, flat, p_text
from mwork_jax.results import LensResults, LensShares


def lens_shares(lens: LensResults, off: bool = False) -> dict[str, LensShares]:
    """{prompt language: its shares}, of the original model or with the language's own neurons off."""
    return {s.language: s for s in lens.shares if bool(s.neurons_off) == off}


def own_english_rest(lens: LensResults, shares: LensShares) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By layer, the shares of the prompt's language, of English, and of what has no label: float64 [layers + 1] each.
    Zeros where a language is not among the columns."""
    columns, top = lens.labels.columns, np.asarray(shares.top_k)

    def share(*names: str) -> np.ndarray:
        return top[:, [columns.index(n) for n in names if n in columns]].sum(axis=1)

    return share(shares.language), share(ENGLISH), share(*REST)


def lens_table(lens: LensResults) -> Table:
    """Own language, English and unlabelled share by layer, for the prompts of each language, in percent."""
    parts = {lang: own_english_rest(lens, shares) for lang, shares in lens_shares(lens).items()}
    layers = len(next(iter(parts.values()))[0])
    rows = [
        (str(layer), *("/".join(f"{100 * part[layer]:.0f}" for part in shares) for shares in parts.values()))
        for layer in range(layers)
    ]
    top, columns = lens.provenance.settings.top, lens.labels.columns
    records = [
        {"prompt": s.language, "neurons_off": s.neurons_off, "layer": layer}
        | dict(zip(columns, s.top_k[layer], strict=True))
        for s in lens.shares
        for layer in range(layers)
    ]
    note = (
        f"Percent of the {top} tokens that each layer ranks first (logit lens): own language / English / not labelled "
        "(other scripts, words of several languages, no letters). Layer 0 is the embeddings. The CSV has every label."
    )
    names = tuple(name_of(lang) for lang in parts)
    return Table("languages-by-layer", "Languages by layer", ("layer", *names), tuple(rows), 1, note, tuple(records))


def lens_sentence(lens: LensResults) -> str:
    """What the layer figure shows, counted and not wished for."""
    shares = {lang: own_english_rest(lens, s) for lang, s in lens_shares(lens).items() if lang != ENGLISH}
    top = lens.provenance.settings.top
    if not shares or ENGLISH not in lens.labels.columns:
        return "The figure has no language beside English to compare with English."
    peaks = {lang: int(np.argmax(english)) for lang, (_, english, _) in shares.items()}
    leads = [lang for lang, (own, english, _) in shares.items() if english[peaks[lang]] > own[peaks[lang]]]
    last = len(next(iter(shares.values()))[0]) - 1
    heights = [100 * english[peaks[lang]] for lang, (_, english, _) in shares.items()]
    own_last = [100 * own[-1] for own, _, _ in shares.values()]
    blank = [100 * rest.mean() for _, _, rest in shares.values()]
    return (
        f"For prompts in {len(shares)} languages other than English, English has its largest share of the top {top} "
        f"tokens, {_range(heights)} %, in layers {_range(list(peaks.values()))} of {last}; there it outweighs the "
        f"prompt's own language in {len(leads)} of {len(shares)}. In the last layer {_range(own_last)} % are of the "
        f"prompt's language. On average {_range(blank)} % of the tokens carry no language's label. "
        f"{pattern_sentence(english_pattern(lens))}"
    )


def pattern_sentence(pattern: Pattern) -> str:
    """The verdict on Figure 1's pattern, and what it rests on or what it lacks."""
    shown, against, unsure = (pattern.with_finding(finding) for finding in ("shows it", "contradicts it", "undecided"))

    def of(languages: Sequence[str]) -> str:
        return f"{len(languages)} of {len(pattern.languages)} languages" + (
            f" ({', '.join(map(name_of, languages))})" if languages else ""
        )

    what = "The paper's Figure 1, English in the inner layers and the prompt's language at the end,"
    if pattern.kind == "no verdict":
        return f"No verdict on the paper's Figure 1; it would need {'; '.join(pattern.missing)}."
    if pattern.kind == "undecided":
        return f"{what} is undecided here: shown by {of(shown)}, contradicted by {of(against)}; {pattern.missing[0]}."
    verdict = {"holds": "holds here", "does not hold": "does not hold here", "differs": "differs between languages"}
    open_ = f", undecided in {of(unsure)}" if unsure else ""
    return f"{what} {verdict[pattern.kind]}: shown by {of(shown)}, contradicted by {of(against)}{open_}."


def pattern_table(lens: LensResults) -> Table:
    """What the verdict on Figure 1 rests on."""
    pattern = english_pattern(lens)

    def cells(lead: Lead) -> tuple[str, str]:
        interval = NONE if lead.ci95 is None else f"{100 * lead.ci95[0]:+.0f} to {100 * lead.ci95[1]:+.0f}"
        return f"{100 * lead.value:+.0f} ({interval})", p_text(lead.p_holm)

    rows = tuple(
        (name_of(lang), str(one.prompts), *cells(one.inside), *cells(one.end), one.finding)
        for lang, one in pattern.languages.items()
    )
    records = tuple(
        flat({"language": lang, **msgspec.to_builtins(one), "finding": one.finding, "verdict": pattern.kind})
        for lang, one in pattern.languages.items()
    )
    depth = lens.provenance.model.layers
    inside = inner_layers(depth)
    note = (
        "Inside: English's share of the top tokens less that of the prompt's language, mean over layers "
        f"{inside[0]} to {inside[-1]} of {depth}; at the end: the language's less English's, last layer. Points, over "
        f"prompts, with 95% intervals; p: t tests against a lead of {100 * MARGIN:.0f} points, corrected over the "
        f"table (Holm). A language shows the pattern where both leads are above {100 * MARGIN:.0f}, contradicts it "
        "where one is below."
    )
    columns = ("language", "prompts", "English leads inside", "p", "the language leads at the end", "p", "Figure 1")
    return Table("figure-1-pattern", "Does the model go through English?", columns, rows, 1, note, records)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"
