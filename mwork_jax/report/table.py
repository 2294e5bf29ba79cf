"""A table that people read, in every form they may want it in: text, HTML, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mwork_jax.report.names import one_line

# Shown by the page where the table is wider than its box; hidden where the page's style is not there.
SCROLL_HINT = '<p class="hint" hidden aria-hidden="true">more to the side ↔</p>'
FORMATS = ("md", "latex", "csv")
_LINE = 36  # characters of a cell that stand in one line; longer ones are text, which a page breaks
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "Δ": r"$\Delta$", "✗": r"$\times$", "✓": r"\checkmark{}",
    "±": r"$\pm$", "−": "$-$", "≈": r"$\approx$", "–": "--", "·": r"$\cdot$", "×": r"$\times$",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}",
}  # fmt: skip


# What a spreadsheet would compute, full-width signs too; a signed number, with its interval behind it, is none.
_FORMULA = re.compile(r"[=@\t＝＠]|[+\-＋－](?![\d.,]+(\Z| \([\d+\-.,% to]*\)\Z|[%\s]\Z))")


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, and the numbers behind them.

    name: also its file's name. words: so many first columns are words, to the left, and name their row; the others are
    numbers, to the right. records: the same rows with unrounded values, for CSV and JSON. In a notebook it shows
    itself.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    note: str = ""
    records: tuple[Mapping[str, object], ...] = ()

    def __post_init__(self) -> None:
        for name in ("title", "note"):
            object.__setattr__(self, name, one_line(getattr(self, name)))
        object.__setattr__(self, "columns", tuple(map(one_line, self.columns)))
        object.__setattr__(self, "rows", tuple(tuple(map(one_line, row)) for row in self.rows))

    def text(self, left: int | None = None) -> str:
        """Aligned columns; the first `left` ones to the left (default: the words)."""
        left = self.words if left is None else left
        rows = (self.columns, *self.rows)
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]
        lines = [
            "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        return "\n".join([lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:])])

    def markdown(self) -> str:
        def plain(text: str) -> str:
            return text.replace("&", "&amp;").replace("<", "&lt;")  # Markdown may hold HTML

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(plain(c).replace("|", r"\|") for c in cells) + " |"

        marks = ["---" if i < self.words else "---:" for i in range(len(self.columns))]
        body = "\n".join([line(self.columns), line(marks), *map(line, self.rows)])
        return f"**{plain(self.title)}**\n\n{body}\n" + (f"\n{plain(self.note)}\n" if self.note else "")

    def latex(self) -> str:
        """A table that fits one column, for the packages booktabs, amssymb and adjustbox; the last makes a wide one
        smaller and leaves others as they are."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join("".join(_LATEX.get(sign, sign) for sign in cell) for cell in cells) + r" \\"

        def plain(text: str) -> str:
            return "".join(_LATEX.get(sign, sign) for sign in text)

        alignment = "l" * self.words + "r" * (len(self.columns) - self.words)
        parts = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{plain(' '.join(filter(None, (self.title + '.', self.note))))}}}",
            rf"\label{{tab:{self.name}}}",
            r"\footnotesize\setlength{\tabcolsep}{3pt}",
            r"\begin{adjustbox}{max width=\columnwidth}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            line(self.columns),
            r"\midrule",
            *map(line, self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\end{table}",
        ]
        return "\n".join(parts) + "\n"

    def csv(self) -> str:
        """The records where there are any, else the cells."""
        out = io.StringIO()
        records = self.records or [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        records = [{str(_plain_value(key)): _plain_value(value) for key, value in record.items()} for record in records]
        writer = csv.DictWriter(out, list(dict.fromkeys(key for record in records for key in record)))
        writer.writeheader()
        writer.writerows(records)
        return out.getvalue()

    def written(self, form: str) -> str:
        """The table in one of FORMATS."""
        return {"md": self.markdown, "latex": self.latex, "csv": self.csv}[form]()

    def html(self) -> str:
        """A table with real headers, named by the line over it; where the page is narrow it scrolls by itself."""

        def cell(i: int, text: str) -> str:
            shown = html.escape(text)
            if i == 0:
                return f'<th scope="row">{shown}</th>'
            return f'<td class="long">{shown}</td>' if len(text) > _LINE else f"<td{_kind(i, self.words)}>{shown}</td>"

        head = "".join(
            f'<th scope="col"{_kind(i, self.words)}>{html.escape(c)}</th>' for i, c in enumerate(self.columns)
        )
        body = "\n".join(f"<tr>{''.join(cell(i, c) for i, c in enumerate(row))}</tr>" for row in self.rows)
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        named = f'aria-labelledby="{self.name}-name"'
        return (
            f'<p class="caption" id="{self.name}-name">{html.escape(self.title)}</p>'
            f'<div class="scroll" role="region" tabindex="0" {named}>{SCROLL_HINT}<table {named}>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>{note}"
        )

    def _repr_html_(self) -> str:
        return self.html()


def _plain_value(value: object) -> object:
    """A value for CSV: a text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if _FORMULA.match(text) else text


def _kind(column: int, words: int) -> str:
    return "" if column < words else ' class="n"'
