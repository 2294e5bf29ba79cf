"""One self-contained page: no script, no request, light and dark, for a phone and for paper."""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from mwork_jax.report.language_names import direction_of, full_name, name_of
from mwork_jax.report.loaded_results import LoadedResults
from mwork_jax.report.sections import LENS_KEY, Figure, Section
from mwork_jax.report.table import Table

_LONG = 16  # rows
_EXAMPLE_NOTE = (
    "Columns: the beginning of a prompt. Rows: layers, the last on top. A cell: the token that the layer ranks first, "
    "tinted by its language, stronger for more probable."
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # nothing can leave the page


def page(loaded: LoadedResults, parts: Iterable[Section]) -> str:
    """The whole page as HTML."""
    parts = list(parts)
    title = f"mwork: {loaded.model['source']}"
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
<h1>{_text(_short(str(loaded.model["source"])))}</h1>
<p class="lead">How this model handles languages: {_text(_lead(loaded))}</p>
{_facts(loaded)}
<nav aria-label="Sections"><ul>{links}<li><a href="#made">What made this</a></li></ul></nav>
</header>
<main>
{"".join(map(_section, parts))}
{_made(loaded)}
</main>
<footer><p>Written by mwork-jax, an implementation of PLND and MWork (Zhao et al., NeurIPS 2024).</p></footer>
</body>
</html>
"""


def _text(text: Any) -> str:
    return html.escape(str(text))


def _short(source: str) -> str:
    """A path's last part; a name or a Hub id as it is."""
    return source.rstrip("/").rsplit("/", 1)[-1] if source.startswith(("/", ".", "~")) else source


def _lead(loaded: LoadedResults) -> str:
    languages = dict.fromkeys([*(loaded.run or {}).get("original", {}), *loaded.neurons, *loaded.scores])
    if loaded.lens is not None:
        languages |= dict.fromkeys(loaded.lens["data"])
    return f"{', '.join(map(name_of, languages))}." if languages else "the tables below."


def _facts(loaded: LoadedResults) -> str:
    """The run in four numbers."""
    if loaded.run is None:
        return ""
    rows = list(loaded.run["languages"].values())

    def span(values: list[float], form: str) -> str:
        low, high = format(min(values), form), format(max(values), form)
        return low if low == high else f"{low} to {high}"

    facts = (
        ("own", span([100 * r["share"] for r in rows], ".2f") + " %", "of the neurons switched off, by language"),
        ("own", span([r["everywhere"]["own"] for r in rows], "+.2f"), "nats per token lost in the language itself"),
        ("english", span([r["everywhere"]["english"] for r in rows], "+.2f"), "nats per token lost in English"),
        ("random", span([r["random"]["own_mean"] for r in rows], "+.2f"), "lost with as many random neurons off"),
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


def _example(example: Mapping[str, Any], opened: bool) -> str:
    """Layers by positions, each cell the token that the layer ranks first, tinted by its label."""
    language = example["language"]
    head = "".join(f'<th scope="col"><bdi>{_token(t)}</bdi></th>' for t in example["tokens"])
    rows = []
    for layer in reversed(range(len(example["layers"]))):
        cells = "".join(_lens_cell(cell, language) for cell in example["layers"][layer])
        rows.append(f'<tr><th scope="row">{layer}</th>{cells}</tr>')
    name = _text(full_name(language))
    return (
        f"<details{' open' if opened else ''}><summary>{name}</summary>"
        f'<div class="scroll lens" role="region" tabindex="0" aria-label="Layers by position, {name}">'
        f'<table dir="{direction_of(language)}">'
        f'<thead><tr><th scope="col">layer</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _lens_cell(cell: Mapping[str, Any], language: str) -> str:
    kind = {language: "own", "en": "english"}.get(
        cell["label"], "rest" if cell["label"] in ("other", "unclear", "none") else "others"
    )
    tint = 8 + round(42 * float(cell["probability"]))
    style = f"background:color-mix(in srgb, var(--{kind}) {tint}%, transparent)"
    about = _text(f"{cell['label']}, probability {cell['probability']:.2f}")
    return f'<td style="{style}" title="{about}"><bdi>{_token(cell["token"])}</bdi></td>'


def _token(token: str) -> str:
    shown = token.replace("\n", "⏎").replace("\t", "⇥")
    return _text(shown) if shown.strip() else "␣"


def _made(loaded: LoadedResults) -> str:
    """Model, data, settings, versions, seeds, and the command that repeats it."""
    run, lens, split = loaded.run, loaded.lens, loaded.split
    made = dict(run["made_by"]) if run else {}
    tuned = dict((loaded.study or {}).get("made_by", {}).get("settings", {}))
    tuned |= tuned.pop("tune", {})
    staged = bool(run or lens or loaded.tables or loaded.neurons)
    facts: dict[str, Any] = {
        "Model": ", ".join(f"{k} {v}" for k, v in loaded.model.items()),
        "Settings": _pairs(made.get("settings", {})),
        "Stages": f"N1 = {split.understanding}, N2 = {split.generation} of {split.layers} layers" if staged else "",
        "Data": "; ".join(f"{lang}: {d['origin']}" for lang, d in made.get("data", {}).items()),
        "Lens": _pairs(lens["settings"]) if lens else "",
        "Tuning": _pairs(tuned),
        "Versions": _pairs(made.get("versions", {})),
    }
    for table in loaded.tables:
        facts[f"Table {table['table']}, {table['task']['name']}"] = _pairs(table.get("settings", {}))
    rows = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items() if v)
    commands = "\n".join(repeat_commands(loaded))
    again = f"<h3>To repeat it</h3><pre><code>{_text(commands)}</code></pre>" if commands else ""
    return (
        '<section id="made" aria-labelledby="made-title"><h2 id="made-title">What made this</h2>'
        f'<dl class="made">{rows}</dl>{again}</section>'
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{k} {' '.join(map(str, v)) if isinstance(v, list | tuple) else v}"
        for k, v in values.items()
        if v is not None and v != []
    )


def repeat_commands(loaded: LoadedResults) -> list[str]:
    """The commands that give the same results again, as far as the files say."""
    commands = []
    run, lens = loaded.run, loaded.lens
    if run is not None:
        made = run["made_by"]
        own = [f"{lang}={origin}" for lang, origin in _own_files(made.get("data", {})).items()]
        commands.append(_command("run", made["model"], made["settings"], "DIR", [("data", own)] if own else []))
    if lens is not None:
        options = {"languages": list(lens["data"]), "documents": next(iter(lens["data"].values()))["documents"]}
        options |= {k: lens["settings"].get(k) for k in ("max_tokens", "top", "labeller", "label_languages")}
        options["neurons"] = "DIR" if any(s["neurons_off"] for s in lens["shares"]) else None
        files = [("corpus", [f"{lang}={origin}"]) for lang, origin in _own_files(lens["data"]).items()]
        commands.append(_command("lens", lens["model"], options, "DIR", files))
    for table in (*loaded.tables, *loaded.grids):
        options = {"neurons": "DIR", "table": table["table"], "task": table["task"]["name"]}
        options |= dict(table.get("settings", {})) | _stages_of(table)
        folder = "DIR/tables" if "stages" in table else "DIR/grid"
        commands.append(_command("evaluate", table["model"], options, folder))
    return commands


def _own_files(data: Mapping[str, Any]) -> dict[str, str]:
    """{language: the reader's own file}; none of the project's own documents."""
    origins = {lang: str(d.get("origin", "")) for lang, d in data.items()}
    return {lang: origin for lang, origin in origins.items() if origin and not origin.startswith("mwork-jax data")}


def _stages_of(table: Mapping[str, Any]) -> dict[str, list[int]]:
    """N1 and N2 as options: of a grid, all of them."""
    rows = [table["stages"]] if "stages" in table else table["rows"]
    return {option: sorted({row[n] for row in rows}) for option, n in (("n1", "understanding"), ("n2", "generation"))}


def _command(
    name: str,
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    out: str,
    files: Iterable[tuple[str, list[str]]] = (),
) -> str:
    """A command line: what is None, False or empty is left out, True is an option without a value. files: options with
    several values."""
    given = [f"mwork {name}"]
    for option, value in {"model": model["source"], "dtype": model["dtype"], **options}.items():
        if value is not None and value is not False and value != []:
            shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            given.append(f"--{option.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(shown)}"))
    given += [f"--{option} {' '.join(map(shlex.quote, values))}" for option, values in files]
    return " ".join([*given, f"--out {out}"])
