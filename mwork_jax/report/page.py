"""One self-contained page: no script, no request, light and dark, for a phone and for paper."""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Iterable

import msgspec

from mwork_jax.report.citation import bibtex
from mwork_jax.report.html_head import html_head, packaged, safe
from mwork_jax.report.language_names import direction_of, full_name, name_of
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.sections import LENS_KEY, Figure, Mark, Section
from mwork_jax.report.svg import Drawing
from mwork_jax.report.table import SCROLL_HINT, Table
from mwork_jax.results import LensExample, LensToken, Provenance

_LONG = 16  # rows
_EXAMPLE_NOTE = (
    "Columns: the beginning of a prompt. Rows: layers, the last on top. A cell: the token that the layer ranks first, "
    "tinted by its language, stronger for more probable."
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # nothing can leave the page


def page(loaded: LoadedResults, parts: Iterable[Section]) -> str:
    """The whole page as HTML."""
    parts = list(parts)
    title = f"mwork: {loaded.model.source}"
    css = packaged("page.css")
    links = "".join(f'<li><a href="#{s.name}">{safe(s.title)}</a></li>' for s in parts)
    return f"""{html_head(title, _POLICY, css)}
<body>
<header>
<h1>{safe(_short(loaded.model.source))}</h1>
<p class="lead">How this model handles languages: {safe(_lead(loaded))} Weights: {safe(loaded.model.precision)}.</p>
{_facts(loaded)}
<nav aria-label="Sections"><ul>{links}<li><a href="#made">What made this</a></li></ul></nav>
</header>
<main>
{"".join(map(_section, parts))}
{_provenance(loaded)}
</main>
<footer><p>Written by mwork-jax, an implementation of PLND and MWork (Zhao et al., NeurIPS 2024).</p></footer>
</body>
</html>
"""


def _short(source: str) -> str:
    """A path's last part; a name or a Hub id as it is."""
    return source.rstrip("/").rsplit("/", 1)[-1] if source.startswith(("/", ".", "~")) else source


def _lead(loaded: LoadedResults) -> str:
    languages = dict.fromkeys([*(loaded.run.original if loaded.run else ()), *loaded.neurons, *loaded.scores])
    if loaded.lens is not None:
        languages |= dict.fromkeys(loaded.lens.provenance.data)
    return f"{', '.join(map(name_of, languages))}." if languages else "the tables below."


def _facts(loaded: LoadedResults) -> str:
    """The run in four numbers."""
    if loaded.run is None:
        return ""
    rows = list(loaded.run.languages.values())

    def span(values: list[float], form: str) -> str:
        low, high = format(min(values), form), format(max(values), form)
        return low if low == high else f"{low} to {high}"

    facts = (
        ("own", span([100 * r.share for r in rows], ".2f") + " %", "of the neurons switched off, by language"),
        ("own", span([r.everywhere.own for r in rows], "+.2f"), "nats per token lost in the language itself"),
        ("english", span([r.everywhere.english for r in rows], "+.2f"), "nats per token lost in English"),
        ("random", span([r.random.own_mean for r in rows], "+.2f"), "lost with as many random neurons off"),
    )
    cells = "".join(f'<div class="{kind}"><dt>{what}</dt><dd>{value}</dd></div>' for kind, value, what in facts)
    return f'<dl class="facts">{cells}</dl>'


def _section(section: Section) -> str:
    words = "".join(f"<p>{safe(w)}</p>" for w in section.words)
    figures = f'<div class="figures">{"".join(map(_figure, section.figures))}</div>'
    tables = "".join(map(_table, section.tables))
    links = "".join(f'<li><a href="{html.escape(address)}">{safe(words)}</a></li>' for address, words in section.links)
    figures += f'<nav aria-label="{safe(section.title)}"><ul>{links}</ul></nav>' if links else ""
    examples = "".join(_example(e, i == 0) for i, e in enumerate(section.examples))
    if examples:
        head = f"<h3>What each layer would say next</h3><p class='note'>{_EXAMPLE_NOTE}</p>"
        probability = Mark("muted", "probability, 0 to 1", "scale")
        examples = f"{head}{_key((*LENS_KEY, probability))}{examples}"
    return (
        f'<section id="{section.name}" aria-labelledby="{section.name}-title">'
        f'<h2 id="{section.name}-title">{safe(section.title)}</h2>{words}{figures}{examples}{tables}'
        f"{_repeat(section.command)}</section>\n"
    )


def _repeat(command: tuple[str, ...]) -> str:
    """The command that repeats a part, as it was typed."""
    typed = " ".join(f'<span class="word">{safe(shlex.quote(word))}</span>' for word in command)
    typed = typed if command[:1] == ("mwork",) else ""
    return f'<p class="note">To repeat this part: <code>{typed}</code></p>' if typed else ""


def _key(key: Iterable[Mark]) -> str:
    items = "".join(f'<li><i class="{m.shape}" style="--mark:var(--{m.colour})"></i>{safe(m.words)}</li>' for m in key)
    return f'<ul class="key">{items}</ul>' if items else ""


def _figure(figure: Figure) -> str:
    key = _key(figure.key)
    if len(figure.drawings) == 1:
        kind, body = "", f"<h3>{safe(figure.drawings[0].label)}</h3>{key}<figure>{_drawing(figure.drawings[0])}"
    else:
        panels = "".join(
            f'<div class="panel"><h3><bdi>{safe(d.label)}</bdi></h3>{_drawing(d)}</div>' for d in figure.drawings
        )
        kind, body = ' class="wide"', f'{key}<figure><div class="panels">{panels}</div>'
    return f"<div{kind}>{body}<figcaption>{safe(figure.caption)}</figcaption></figure></div>"


def _drawing(drawing: Drawing) -> str:
    """A drawing, in a box that scrolls where it would be too small to read."""
    if not drawing.is_wide:
        return drawing.inline
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{safe(drawing.label)}">'
    return f"{box}{SCROLL_HINT}{drawing.inline}</div>"


def _table(table: Table) -> str:
    """A table with its data to take away; a long one is folded."""
    data = base64.b64encode(table.csv().encode()).decode()
    link = (
        f'<p class="note download"><a download="{table.name}.csv" href="data:text/csv;base64,{data}" '
        f'aria-label="Data as CSV: {safe(table.title)}">Data as CSV</a></p>'
    )
    if len(table.rows) <= _LONG:
        return table.html() + link
    return f"<details><summary>{safe(table.title)}: the numbers</summary>{table.html()}{link}</details>"


def _example(example: LensExample, opened: bool) -> str:
    """Layers by positions, each cell the token that the layer ranks first, tinted by its label."""
    language = example.language
    head = "".join(f'<th scope="col"><bdi>{_token(t)}</bdi></th>' for t in example.tokens)
    rows = []
    for layer in reversed(range(len(example.layers))):
        cells = "".join(_lens_token(token, language) for token in example.layers[layer])
        rows.append(f'<tr><th scope="row">{layer}</th>{cells}</tr>')
    name = safe(full_name(language))
    return (
        f"<details{' open' if opened else ''}><summary>{name}</summary>"
        f'<div class="scroll lens" role="region" tabindex="0" dir="{direction_of(language)}" '
        f'aria-label="Layers by position, {name}">{SCROLL_HINT}<table>'
        f'<thead><tr><th scope="col">layer</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _lens_token(token: LensToken, language: str) -> str:
    kind = {language: "own", "en": "english"}.get(
        token.label, "rest" if token.label in ("other", "unclear", "none") else "others"
    )
    tint = 8 + round(42 * token.probability)
    style = f"background:color-mix(in srgb, var(--{kind}) {tint}%, transparent)"
    about = safe(f"{token.label}, probability {token.probability:.2f}")
    return f'<td style="{style}" title="{about}"><bdi>{_token(token.token)}</bdi></td>'


def _token(token: str) -> str:
    shown = token.replace("\n", "⏎").replace("\t", "⇥")
    return safe(shown) if shown.strip() else "␣"


def _provenance(loaded: LoadedResults) -> str:
    """Model, data, settings, versions, and the commands that made it."""
    facts = [("Model", _values(loaded.model)), ("Weights", loaded.model.precision)]
    parts = _parts(loaded)
    if loaded.run or loaded.lens or loaded.tables or loaded.neurons:
        split = loaded.split
        facts.append(("Stages", f"N1 = {split.understanding}, N2 = {split.generation} of {split.layers} layers"))
    for title, provenance in parts:
        facts.append((f"{title}: settings", _values(provenance.settings)))
        facts.append((f"{title}: data", "; ".join(f"{lang}: {d.origin}" for lang, d in provenance.data.items())))
        facts.append((f"{title}: versions", ", ".join(f"{name} {v}" for name, v in provenance.versions.items())))
    rows = "".join(f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in facts if value)
    commands = "\n".join(map(safe, repeat_commands(loaded)))
    again = f"<h3>To repeat it</h3><pre><code>{commands}</code></pre>" if commands else ""
    return (
        '<section id="made" aria-labelledby="made-title"><h2 id="made-title">What made this</h2>'
        f'<dl class="made">{rows}</dl>{again}'
        f"<h3>To cite it</h3><pre><code>{html.escape(bibtex().strip())}</code></pre></section>"
    )


def _parts(loaded: LoadedResults) -> list[tuple[str, Provenance]]:
    """Every result of the folder with what made it."""
    parts = [(name, r) for name, r in (("Run", loaded.run), ("Tuning", loaded.tuning), ("Lens", loaded.lens)) if r]
    parts += [("Steering", loaded.steer)] if loaded.steer else []
    parts += [("lm-evaluation-harness", loaded.lm_eval)] if loaded.lm_eval else []
    parts += [("Detection", loaded.detect)] if loaded.detect and not loaded.run else []
    parts += [(f"Table {t.table}, {t.task_title}", t) for t in (*loaded.tables, *loaded.grids)]
    return [(name, result.provenance) for name, result in parts]


def _values(settings: object) -> str:
    """The fields of a dataclass in words; those without a value are left out."""
    values = msgspec.to_builtins(settings)
    values |= values.pop("tune", {})
    return ", ".join(
        f"{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in values.items()
        if value is not None and value != ()
    )


def repeat_commands(loaded: LoadedResults) -> list[str]:
    """The commands as they were typed, each once; none for what was made from Python."""
    commands = (provenance.command for _, provenance in _parts(loaded))
    return list(dict.fromkeys(shlex.join(command) for command in commands if command[:1] == ("mwork",)))
