"""One self-contained page: no script, no request, light and dark, for a phone and for paper."""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Iterable
from importlib import resources

import msgspec

from mwork_jax.report.language_names import direction_of, full_name, name_of
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.names import one_line
from mwork_jax.report.sections import LENS_KEY, Figure, Section
from mwork_jax.report.table import Table
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
    css = (resources.files("mwork_jax.report") / "page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{s.name}">{_text(s.title)}</a></li>' for s in parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="generator" content="mwork-jax">
<title>{_text(title)}</title>
<link rel="icon" href="data:,">
<style>
{css}</style>
</head>
<body>
<header>
<h1>{_text(_short(loaded.model.source))}</h1>
<p class="lead">How this model handles languages: {_text(_lead(loaded))}</p>
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


def _text(text: object) -> str:
    return html.escape(one_line(str(text)))


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
    words = "".join(f"<p>{_text(w)}</p>" for w in section.words)
    figures = f'<div class="figures">{"".join(map(_figure, section.figures))}</div>'
    tables = "".join(map(_table, section.tables))
    examples = "".join(_example(e, i == 0) for i, e in enumerate(section.examples))
    if examples:
        head = f"<h3>What each layer would say next</h3><p class='note'>{_EXAMPLE_NOTE}</p>"
        examples = f"{head}{_key(LENS_KEY)}{examples}"
    return (
        f'<section id="{section.name}" aria-labelledby="{section.name}-title">'
        f'<h2 id="{section.name}-title">{_text(section.title)}</h2>{words}{figures}{examples}{tables}</section>\n'
    )


def _key(key: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<li><i style="background:var(--{c})"></i>{_text(w)}</li>' for c, w in key)
    return f'<ul class="key">{items}</ul>' if items else ""


def _figure(figure: Figure) -> str:
    key = _key(figure.key)
    if len(figure.drawings) == 1:
        kind, body = "", f"<h3>{_text(figure.drawings[0].label)}</h3>{key}<figure>{figure.drawings[0].inline}"
    else:
        panels = "".join(
            f'<div class="panel"><h3><bdi>{_text(d.label)}</bdi></h3>{d.inline}</div>' for d in figure.drawings
        )
        kind, body = ' class="wide"', f'{key}<figure><div class="panels">{panels}</div>'
    return f"<div{kind}>{body}<figcaption>{_text(figure.caption)}</figcaption></figure></div>"


def _table(table: Table) -> str:
    """A table with its data to take away; a long one is folded."""
    data = base64.b64encode(table.csv().encode()).decode()
    link = (
        f'<p class="note download"><a download="{table.name}.csv" href="data:text/csv;base64,{data}" '
        f'aria-label="Data as CSV: {_text(table.title)}">Data as CSV</a></p>'
    )
    if len(table.rows) <= _LONG:
        return table.html() + link
    return f"<details><summary>{_text(table.title)}: the numbers</summary>{table.html()}{link}</details>"


def _example(example: LensExample, opened: bool) -> str:
    """Layers by positions, each cell the token that the layer ranks first, tinted by its label."""
    language = example.language
    head = "".join(f'<th scope="col"><bdi>{_token(t)}</bdi></th>' for t in example.tokens)
    rows = []
    for layer in reversed(range(len(example.layers))):
        cells = "".join(_lens_token(token, language) for token in example.layers[layer])
        rows.append(f'<tr><th scope="row">{layer}</th>{cells}</tr>')
    name = _text(full_name(language))
    return (
        f"<details{' open' if opened else ''}><summary>{name}</summary>"
        f'<div class="scroll lens" role="region" tabindex="0" aria-label="Layers by position, {name}">'
        f'<table dir="{direction_of(language)}">'
        f'<thead><tr><th scope="col">layer</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _lens_token(token: LensToken, language: str) -> str:
    kind = {language: "own", "en": "english"}.get(
        token.label, "rest" if token.label in ("other", "unclear", "none") else "others"
    )
    tint = 8 + round(42 * token.probability)
    style = f"background:color-mix(in srgb, var(--{kind}) {tint}%, transparent)"
    about = _text(f"{token.label}, probability {token.probability:.2f}")
    return f'<td style="{style}" title="{about}"><bdi>{_token(token.token)}</bdi></td>'


def _token(token: str) -> str:
    shown = token.replace("\n", "⏎").replace("\t", "⇥")
    return _text(shown) if shown.strip() else "␣"


def _provenance(loaded: LoadedResults) -> str:
    """Model, data, settings, versions, and the commands that made it."""
    facts: list[tuple[str, str]] = [("Model", _values(loaded.model))]
    parts = _parts(loaded)
    if loaded.run or loaded.lens or loaded.tables or loaded.neurons:
        split = loaded.split
        facts.append(("Stages", f"N1 = {split.understanding}, N2 = {split.generation} of {split.layers} layers"))
    for title, provenance in parts:
        facts.append((f"{title}: settings", _values(provenance.settings)))
        facts.append((f"{title}: data", "; ".join(f"{lang}: {d.origin}" for lang, d in provenance.data.items())))
        facts.append((f"{title}: versions", ", ".join(f"{name} {v}" for name, v in provenance.versions.items())))
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts if value)
    commands = "\n".join(map(_text, repeat_commands(loaded)))
    again = f"<h3>To repeat it</h3><pre><code>{commands}</code></pre>" if commands else ""
    return (
        '<section id="made" aria-labelledby="made-title"><h2 id="made-title">What made this</h2>'
        f'<dl class="made">{rows}</dl>{again}</section>'
    )


def _parts(loaded: LoadedResults) -> list[tuple[str, Provenance]]:
    """Every result of the folder with what made it."""
    parts = [(name, r) for name, r in (("Run", loaded.run), ("Tuning", loaded.tuning), ("Lens", loaded.lens)) if r]
    parts += [(f"Table {t.table}, {t.task.name}", t) for t in (*loaded.tables, *loaded.grids)]
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
