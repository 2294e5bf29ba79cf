"""Results in which others chose the names: of tasks, languages, models, stages and versions."""

from __future__ import annotations

from dataclasses import replace

from mwork_jax.results import TablesResults, write_results
from support.made_results import MODEL, made_grid, made_lens, made_matrix, made_run, made_table, made_tuning

NAMES = {
    "a way out": "x/../../../victim",
    "a path": "/etc/passwd",
    "a windows path": r"..\..\victim",
    "html": '"><meta http-equiv="refresh" content="0;url=//evil.example"><script>evil()</script>',
    "an attribute": "x' onload='evil()",
    "latex": r"\input{/etc/passwd} $x_1^2$ # % & ~ { \verb|a|",
    "broken mathematics": r"$\frac{1}{$",
    "lines": "a\n\nb\r\nc\u2028d",
    "a terminal's orders": "\x1b]0;evil\x07\x1b[2J\x00",
    "no words": "…",
    "empty": "",
    "dots": "..",
    "a formula": '=HYPERLINK("//evil.example")',
    "long": "long " * 200,
    "another script": "ภาษา/ไทย",
}


def renamed(lens, name):
    """A lens of which the language `de` has another name."""
    columns = tuple(name if column == "de" else column for column in lens.labels.columns)
    own, *others = lens.shares
    example = replace(lens.examples[0], language=name, tokens=(name, name))
    labels = replace(lens.labels, columns=columns, counts=dict.fromkeys(columns, 10))
    return replace(lens, labels=labels, shares=(replace(own, language=name), *others), examples=(example,))


def foreign_folder(folder, name):
    """Results of every kind in which tasks, a language, the model, stages and versions have the name given."""
    model = replace(MODEL, source=name, family=name)

    def of(results):
        provenance = replace(
            results.provenance, model=model, versions={name: name}, command=("mwork", "report", name),
            data=dict.fromkeys((name,), replace(results.provenance.data["th"], origin=name)),
        )  # fmt: skip
        return replace(results, provenance=provenance)

    languages = ("en", name, "th")
    run = made_run()
    run = replace(
        run,
        original={name if lang == "de" else lang: loss for lang, loss in run.original.items()},
        languages={name if lang == "de" else lang: change for lang, change in run.languages.items()},
        matrix=made_matrix(languages),
    )
    tables = [replace(of(made(name, languages)), stage=name) for made in (made_table, made_grid)]
    write_results(folder / "results.json", of(run))
    write_results(folder / "tables" / "results.json", TablesResults.of(tables))
    write_results(folder / "tuning" / "results.json", of(made_tuning(model, ("held-out loss", name), languages)))
    write_results(folder / "lens.json", of(renamed(made_lens(), name)))
    return folder
