"""Results of tuning as people read them: Table 6 as text, Figure 4 as a small SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mwork_jax.report import NAMES

_METHODS = {"random": "Random", "lang-spec": "Lang-Spec"}
_COLOURS = {"lang-spec": "#0b6e4f", "random": "#8a8a8a"}
_WIDTH, _HEIGHT, _MARGIN = 360, 240, 46


def enhance_report(results: Mapping[str, Any]) -> str:
    """Every measure at every number of documents, in the layout of Table 6, with the intervals of the changes."""
    made, rows = results["made_by"], results["rows"]
    tune = made["settings"]["tune"]
    head = (
        f"{made['model']['source']} ({made['model']['dtype']}), tuned at learning rate {tune['learning_rate']:g}, "
        f"up to {tune['epochs']} epochs, {tune['batch']} rows of {tune['max_tokens']} tokens per step."
    )
    places = dict.fromkeys((row["task"], row["documents"]) for row in rows)
    parts = [_table([r for r in rows if (r["task"], r["documents"]) == place], results["original"]) for place in places]
    stopped = [name for name, run in results["runs"].items() if run["diverged"]]
    if stopped:
        head += f"\nThe loss of {', '.join(stopped)} was no longer finite: the best values before that are measured."
    return "\n\n".join([head, *parts])


def _table(rows: Sequence[Mapping[str, Any]], original: Mapping[str, Mapping[str, float]]) -> str:
    task, documents = rows[0]["task"], rows[0]["documents"]
    languages = list(dict.fromkeys(row["language"] for row in rows))
    digits = 3 if task == "held-out loss" else 1
    lines = [["Method", "En", *(NAMES.get(lang, lang) for lang in languages), "others"]]
    before = original[task]
    lines.append(["Original", *(f"{before[lang]:.{digits}f}" for lang in ("en", *languages)), ""])
    for kind, method in _METHODS.items():
        of_kind = {row["language"]: row for row in rows if row["neurons"] == kind}
        if not of_kind:
            continue
        eng = sum(row["eng"] for row in of_kind.values()) / len(of_kind)
        others = [row["delta_others"] for row in of_kind.values() if row["delta_others"] is not None]
        cells = [f"{of_kind[lang]['n_eng']:.{digits}f}" for lang in languages]
        mean = f"{sum(others) / len(others):+.{digits}f}" if others else ""
        lines.append([method, f"{eng:.{digits}f}", *cells, mean])
        lines.append(["  change", *_changes(of_kind, languages, digits), ""])
        beyond = [of_kind[lang].get("own_beyond_random") for lang in languages]
        if any(beyond):
            cells = [_with_interval(b["change"], b["ci95"], digits) if b else "" for b in beyond]
            lines.append(["  beyond Random", "", *cells, ""])
    score = "minus nats per token" if task == "held-out loss" else "points"
    items = rows[0]["n_items"]
    title = f"{task} ({score}, higher is better), {documents} documents per language; about {items // 2} items each"
    return f"{title}\n\n{_aligned(lines)}"


def _changes(rows: Mapping[str, Mapping[str, Any]], languages: Sequence[str], digits: int) -> list[str]:
    """The change of English, mean over the tuned models, and of each language with its 95 % interval."""
    english = sum(row["delta_eng"] for row in rows.values()) / len(rows)
    cells = [f"{english:+.{digits}f}"]
    for lang in languages:
        cells.append(_with_interval(rows[lang]["delta_n_eng"], rows[lang]["delta_n_eng_ci95"], digits))
    return cells


def _with_interval(change: float, interval: Sequence[float], digits: int) -> str:
    low, high = interval
    return f"{change:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )


def figure(results: Mapping[str, Any]) -> str:
    """Figure 4: the change of the tuned languages, mean over them, against the number of documents; an SVG for each
    measure, one below the other."""
    tasks = list(dict.fromkeys(row["task"] for row in results["rows"]))
    parts = [_panel(task, [r for r in results["rows"] if r["task"] == task], i) for i, task in enumerate(tasks)]
    height = _HEIGHT * len(tasks)
    style = "font-family='sans-serif' font-size='11'"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}' {style}>{''.join(parts)}</svg>\n"
    )


def _panel(task: str, rows: Sequence[Mapping[str, Any]], place: int) -> str:
    counts = sorted({row["documents"] for row in rows})
    lines = {}
    for kind in _METHODS:
        of_kind = [[r["delta_n_eng"] for r in rows if (r["neurons"], r["documents"]) == (kind, n)] for n in counts]
        if all(of_kind):
            lines[kind] = [sum(values) / len(values) for values in of_kind]
    every = [0.0, *(value for values in lines.values() for value in values)]
    low, span = min(every), (max(every) - min(every)) or 1.0

    def at(i: int, value: float) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * i / max(1, len(counts) - 1)
        return x, _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (value - low) / span

    parts = [f"<text x='{_MARGIN}' y='18'>{task}: change in the tuned languages</text>"]
    zero = at(0, 0.0)[1]
    parts.append(f"<path d='M{_MARGIN} {zero:.1f}H{_WIDTH - _MARGIN}' stroke='#ccc'/>")
    parts += [
        f"<text x='{at(i, low)[0]:.1f}' y='{_HEIGHT - 24}' text-anchor='middle'>{n}</text>"
        for i, n in enumerate(counts)
    ]
    parts.append(f"<text x='{_WIDTH / 2}' y='{_HEIGHT - 8}' text-anchor='middle'>documents</text>")
    for value in (low, low + span):
        parts.append(f"<text x='{_MARGIN - 4}' y='{at(0, value)[1]:.1f}' text-anchor='end'>{value:+.3g}</text>")
    for n, (kind, values) in enumerate(lines.items()):
        points = " ".join("{:.1f},{:.1f}".format(*at(i, value)) for i, value in enumerate(values))
        parts.append(f"<polyline points='{points}' fill='none' stroke='{_COLOURS[kind]}' stroke-width='2'/>")
        place_of = f"x='{_WIDTH - _MARGIN}' y='{34 + 13 * n}' text-anchor='end'"
        parts.append(f"<text {place_of} fill='{_COLOURS[kind]}'>{_METHODS[kind]}</text>")
    return f"<g transform='translate(0 {_HEIGHT * place})'>{''.join(parts)}</g>"
