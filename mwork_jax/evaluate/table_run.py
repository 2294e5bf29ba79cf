"""A table on a model, the paper's Tables 2 to 5 or another: task x setting x language, and the grid of N1 and N2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mwork_jax.corpus import Batching, Corpus, encoded
from mwork_jax.errors import InputError
from mwork_jax.evaluate.delta_rows import (
    ORIGINAL,
    DeltaTable,
    RowSpec,
    conditions,
    corrected_rows,
    delta_rows,
    row_contrasts,
)
from mwork_jax.evaluate.evaluations import Evaluation, ItemScores, LossEvaluation, TaskEvaluation
from mwork_jax.evaluate.runner import Condition, Measured, measure
from mwork_jax.evaluate.sample_rows import log_table
from mwork_jax.evaluate.table_files import TableSpec
from mwork_jax.evaluate.tasks import NoData, Task, prompt, questions, task_named, with_examples
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.results import (
    NeuronSetInfo,
    Provenance,
    TableResult,
    versions,
)
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.progress import Progress
from mwork_jax.samples import section_name
from mwork_jax.settings import TableSettings

_TOKENS_PER_BATCH = 2048  # of held-out documents


def prepare(task: Task, data: str | Path | None, settings: TableSettings) -> dict[str, TaskEvaluation]:
    """The items and prompts of every language, English first, where the settings name it. Raises InputError for what is
    missing or too little."""
    if not any(lang != ENGLISH for lang in settings.languages):
        raise InputError("the languages must include another one than en, as in en,de: Delta compares with English")
    if data is not None and Path(data).is_file():
        raise InputError(f"{data}: one file, where {', '.join(settings.languages)} need one each; give their folder")
    evaluations = {}
    for language in _english_first(settings):
        available = questions(task, language, data)
        examples, items = with_examples(available, settings.shots)
        items = items[: _count(settings, len(items), available.origin)]
        prompts = tuple(prompt(task, item, examples) for item in items)
        evaluations[language] = TaskEvaluation(task, language, items, prompts, available.origin, available.revision)
    return evaluations


def _english_first(settings: TableSettings) -> list[str]:
    return sorted(dict.fromkeys(settings.languages), key=lambda lang: lang != ENGLISH)


def _count(settings: TableSettings, available: int, origin: str) -> int:
    """How many of the items are measured; InputError where fewer are there."""
    count = available if settings.items is None else settings.items
    if not 1 <= count <= available:
        raise InputError(f"{origin}: {count} items asked, there are {available}; ask for 1 to {available}")
    return count


def prepare_table(table: TableSpec, data: str | Path | None, settings: TableSettings) -> dict[str, TaskEvaluation]:
    """`prepare` for the table's task or, where its data is not at hand in all languages, for the one that stands in for
    it; where neither has English, without it."""
    others = tuple(lang for lang in settings.languages if lang != ENGLISH)
    first: NoData | None = None
    for languages in dict.fromkeys((settings.languages, others)) if others else (settings.languages,):
        for name in filter(None, (table.task, table.stand_in)):
            try:
                return prepare(task_named(name), data, replace(settings, languages=languages))
            except NoData as error:
                first = first or error  # what is missing of the table's own task
    assert first is not None
    raise first


def prepare_losses(
    model: Model, corpora: Mapping[str, Corpus], settings: TableSettings, max_tokens: int = 512
) -> dict[str, LossEvaluation]:
    """The held-out documents of every language, English first: the first `settings.items` of each. Raises InputError
    for documents that cannot be used, and where there are fewer."""
    missing = [lang for lang in settings.languages if lang not in corpora]
    if missing:
        raise InputError(f"held-out loss: no documents of {', '.join(missing)}; there are some of {', '.join(corpora)}")
    if not any(lang != ENGLISH for lang in settings.languages):
        raise InputError("held-out loss: documents of another language than en are needed")
    batching, evaluations = Batching(max_tokens, _TOKENS_PER_BATCH), {}
    for language in _english_first(settings):
        corpus = corpora[language]
        count = _count(settings, len(corpus.held_out), f"{corpus.origin}, held out")
        documents = tuple(encoded(model, corpus.held_out[:count], max_tokens, where=f"{corpus.origin}, held out"))
        evaluations[language] = LossEvaluation(documents, batching, corpus.clusters[:count], corpus.origin)
    return evaluations


def splits_of(settings: TableSettings, layers: int) -> list[StageSplit]:
    """Every combination of N1 and N2 that the settings ask for; the default where they name none."""
    first, last = settings.n1 or (None,), settings.n2 or (None,)
    return [StageSplit.of(layers, n1, n2) for n1 in first for n2 in last]


def run_table(
    model: Model,
    table: TableSpec,
    evaluations: Mapping[str, Evaluation],
    neurons: Mapping[str, NeuronSet],
    settings: TableSettings,
    cache: ResultCache,
    *,
    samples: str | Path | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> TableResult:
    """Every row of a table or, where the settings name several N1 or N2, its rows of language-specific neurons for each
    of them: which split separates best is seen, not assumed.

    evaluations: of `prepare`, `prepare_table` or `prepare_losses`. neurons: {language: its set}, for every
    language but English. Scores that the cache holds are not computed again. samples: an output folder, for
    `samples/NAME.jsonl` with every item's answers, None for no such file; texts: what it says of each item, the prompts
    by default. command: as it was typed, for the provenance. Raises InputError, before any work, for a language without
    neurons, sets of another shape, and items that do not fit the model's context.
    """
    check_mode(table, neurons)
    asked = ready_evaluations(model, evaluations, neurons, settings)
    splits = splits_of(settings, model.config.num_layers)
    is_grid = len(splits) > 1
    specs = [row for row in table.rows if not (is_grid and row.is_random)]
    if not specs:
        raise InputError(f"table {table.name}: a grid has no random rows, and this table no others")
    provenance = _provenance(model, asked, settings, command)
    task = next(iter(asked.values())).task_info(provenance.data.values())
    delta_table = DeltaTable(
        table.name, task.name, model.source, asked, neurons, settings.seeds, statistics=table.statistics
    )
    with progress or Progress() as bar:
        measured = _measured(model, delta_table, specs, splits, cache, bar)
    if samples is not None:
        section = section_name("grid" if is_grid else "table", table.name, task.name)
        log_table(samples, section, model, delta_table, specs, splits, measured, cache, texts or _prompts(asked))
    rows = tuple(
        replace(row, understanding=split.understanding, generation=split.generation) if is_grid else row
        for split in splits
        for row in delta_rows(delta_table, specs, split, measured)
    )
    return TableResult(
        kind="grid" if is_grid else "table",
        provenance=provenance,
        table=table.name,
        stage=table.stage,
        task=task,
        stages=None if is_grid else splits[0],
        neurons={lang: NeuronSetInfo.of(neurons[lang]) for lang in delta_table.others},
        original={lang: one.means(measured[ORIGINAL][lang]) for lang, one in asked.items()},
        rows=corrected_rows(rows),
        contrasts=() if is_grid else row_contrasts(delta_table, specs, table.contrasts, splits[0], measured),
    )


def _measured(
    model: Model,
    table: DeltaTable,
    specs: Sequence[RowSpec],
    splits: Sequence[StageSplit],
    cache: ResultCache,
    bar: Progress,
) -> Measured:
    """Every condition of the rows; those that scale neurons by one factor together."""
    by_scale: dict[float, list[Condition]] = {}
    for scale in dict.fromkeys((0.0, *(row.scale for row in specs))):
        rows = [row for row in specs if row.scale == scale]
        wanted = {c.name: c for split in splits for c in conditions(table, rows, split)}
        by_scale[scale] = [c for name, c in wanted.items() if scale == 0 or name != ORIGINAL]
    each = [condition for of_scale in by_scale.values() for condition in of_scale]
    bar.expect(sum(table.evaluations[lang].size for condition in each for lang in condition.languages))
    measured: dict[str, Mapping[str, ItemScores]] = {}
    for scale, of_scale in by_scale.items():
        scaled = {lang: one.scaled(scale) if scale else one for lang, one in table.evaluations.items()}
        measured |= measure(model, scaled, of_scale, cache, bar)
    return measured


def _prompts(evaluations: Mapping[str, Evaluation]) -> dict[str, Sequence[str]]:
    """{language: what the model reads of each item}; of documents, which are tokens here, nothing."""
    return {
        lang: one.prompts if isinstance(one, TaskEvaluation) else [""] * one.size for lang, one in evaluations.items()
    }


def check_mode(table: TableSpec, neurons: Mapping[str, NeuronSet]) -> None:
    """Raises InputError for sets that were selected with another mode than the table is about."""
    for language, own in neurons.items():
        mode = own.provenance.get("mode")
        if table.mode and mode != table.mode:
            raise InputError(
                f"table {table.name}: the neurons of {language} are of mode {mode or 'unknown'}, not {table.mode}; "
                f"`mwork select --mode {table.mode} --out FOLDER` makes them"
            )


def ready_evaluations(
    model: Model,
    evaluations: Mapping[str, Evaluation],
    neurons: Mapping[str, NeuronSet],
    settings: TableSettings,
) -> dict[str, Evaluation]:
    """The evaluations as this model gets them, in its chat template where asked. Raises InputError for whatever
    `run_table` would not begin with."""
    missing = [lang for lang in evaluations if lang != ENGLISH and lang not in neurons]
    if missing:
        raise InputError(f"no neurons of {', '.join(missing)}; find them first, or leave the language out")
    if settings.seeds < 1:
        raise InputError(f"{settings.seeds} random sets per language asked; a table's random rows need at least 1")
    for own in neurons.values():
        NeuronMask.keep_all(model.config).drop(own)  # a set of another shape is found before any work
    ready: dict[str, Evaluation] = {}
    for language, evaluation in evaluations.items():
        if isinstance(evaluation, TaskEvaluation):
            evaluation = evaluation.as_chat(model) if settings.chat else evaluation
            evaluation.check_fits(model)
        ready[language] = evaluation
    return ready


def _provenance(
    model: Model, evaluations: Mapping[str, Evaluation], settings: TableSettings, command: Sequence[str]
) -> Provenance[TableSettings]:
    data = {lang: one.info for lang, one in evaluations.items()}
    return Provenance(model.info, data, settings, versions(), tuple(command))
