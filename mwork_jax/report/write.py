"""The report of a folder: shown in a notebook, written as a page with figures as files, as tables for papers."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mwork_jax.errors import InputError
from mwork_jax.report.loaded_results import LoadedResults, load_results
from mwork_jax.report.page import page
from mwork_jax.report.paper_tables import paper_tables
from mwork_jax.report.samples import samples_section
from mwork_jax.report.sections import Section, sections
from mwork_jax.report.svg import Drawing
from mwork_jax.report.table import FORMATS, Table
from mwork_jax.report.tables.all import all_tables
from mwork_jax.runtime.files import write_text


@dataclass(frozen=True, eq=False)
class Report:
    """All that a folder's results show. In a notebook it shows the page."""

    results: LoadedResults

    @cached_property
    def sections(self) -> list[Section]:
        return [*sections(self.results), *samples_section(self.results.samples)]

    @cached_property
    def tables(self) -> dict[str, Table]:
        return {table.name: table for table in (*paper_tables(self.results), *all_tables(self.results))}

    @cached_property
    def drawings(self) -> dict[str, Drawing]:
        return {d.name: d for part in self.sections for figure in part.figures for d in figure.drawings}

    @cached_property
    def html(self) -> str:
        return page(self.results, self.sections)

    def _repr_html_(self) -> str:
        inside = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{inside}" title="mwork report" style="width:100%;height:80vh;border:0"></iframe>'

    def write(self) -> Path:
        """Writes `report.html` into the folder, each figure as `figures/NAME.svg` and each table as `figures/NAME.csv`.
        Returns the page's path. Everything is made before anything is written. Raises InputError for a `figures` that
        is a link, since what is written stays inside the folder."""
        files = {f"{name}.svg": drawing.plain + "\n" for name, drawing in self.drawings.items()}
        files |= {f"{name}.csv": table.csv() for name, table in self.tables.items()}
        text, folder = self.html, self.results.folder
        if (folder / "figures").is_symlink():
            raise InputError(f"{folder / 'figures'}: a link; a folder is needed, or nothing of that name")
        path_of_page = folder / "report.html"
        existed = path_of_page.exists()
        earlier = path_of_page.read_text(encoding="utf-8", errors="replace") if existed else ""
        for name, content in files.items():
            write_text(folder / "figures" / name, content)
        for path in (folder / "figures").glob("*.*"):  # of an earlier report that had more
            shown = {".svg": f'"fig-{path.stem}-title"', ".csv": f'"{path.stem}-name"'}.get(path.suffix)
            if path.name not in files and shown is not None and shown in earlier:
                path.unlink()
        write_text(path_of_page, text)
        return path_of_page


def read_report(folder: str | Path) -> Report:
    """The report of a folder of results. Raises InputError for one that has nothing to report, is damaged, or mixes two
    models."""
    return Report(load_results(folder))


def tables_as(folder: str | Path, form: str) -> str:
    """Every table of a folder as "md", "latex" or "csv", one after the other."""
    if form not in FORMATS:
        raise InputError(f"format {form!r} is not one of {', '.join(FORMATS)}")
    return "\n".join(table.written(form) for table in read_report(folder).tables.values())
