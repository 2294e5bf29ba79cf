"""The whole paper on one model, what `mwork paper` does: neurons are found on a stated corpus, then come Table 1,
Tables 2 to 5, the grid of N1 and N2, Figure 1, Table 6 and Figure 4.

Each part has a folder with its own results; what was computed is kept, so the same call goes on wherever it was
interrupted. How many items each table has is settled at the first start and read from `paper.json` after that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec

from mwork_jax.corpus import Corpus
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.enhance.table6 import EvaluationSuite, HeldOut, run_enhancement
from mwork_jax.errors import InputError
from mwork_jax.evaluate.evaluations import Evaluation, TaskEvaluation, answered
from mwork_jax.evaluate.table_files import PACKAGED, TableSpec
from mwork_jax.evaluate.table_run import prepare, prepare_losses, ready_evaluations, run_table
from mwork_jax.evaluate.tasks import NoData, questions, task_named
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.lens.logit_lens import run_lens
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.pipeline import documents_of_run, run_pipeline, work_of_run
from mwork_jax.results import RunResults, TablesResults, write_results
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache
from mwork_jax.runtime.distributed import agreed
from mwork_jax.runtime.files import read_json, write_json
from mwork_jax.select.modes import select_neurons
from mwork_jax.settings import EnhanceSettings, LensSettings, PaperSettings, TuneSettings

TABLE_PARTS = ("1", "2", "3", "4", "5")
PARTS = (*TABLE_PARTS, "grid", "lens", "6")  # in the order in which they are measured
PLAN_FILE, PLAN_FORMAT = "paper.json", "mwork-paper-1"
_GRID_OF = "2"  # the table that is measured for every N1 and N2
_LENS_PROMPTS = 8
_TUNING = (100, 200, 400, 800)  # documents of Table 6 and Figure 4
_SAMPLE = 8  # items that are timed: under four masks, as many rows as a CPU decodes together
_FEWEST_CLUSTERS, _FEWEST_ITEMS = 4, 4  # below which intervals say nothing
_BACKWARD = 10.0  # tuning on a document against the pass of the sample, whose masks share layers; measured

Log = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class TablePart:
    """A table with all the items that there are for it. own: whether they are the project's own, no benchmark."""

    table: TableSpec
    items: Mapping[str, TaskEvaluation]

    @property
    def task(self) -> str:
        return next(iter(self.items.values())).task.name

    @property
    def is_own(self) -> bool:
        return any(one.info.is_built_in for one in self.items.values())

    @property
    def available(self) -> int:
        return min(one.size for one in self.items.values())

    @property
    def fewest(self) -> int:
        """So many items that an interval can say something: of a few passages or problems."""
        ids = [one.item_ids for one in self.first(self.available).values()]
        for n in range(_FEWEST_ITEMS, self.available):
            if all(len(set(of[:n])) >= _FEWEST_CLUSTERS for of in ids):
                return n
        return self.available

    def first(self, count: int) -> dict[str, TaskEvaluation]:
        """The same over `count` items of each language: the first question on every passage before the second on any,
        as questions on one passage say little more than one does."""
        return {
            lang: replace(one, items=tuple(one.items[i] for i in own), prompts=tuple(one.prompts[i] for i in own))
            for lang, one in self.items.items()
            for own in [_spread(one.item_ids)[:count]]
        }

    def passes(self, seeds: int, splits: int = 0) -> int:
        """How often each item is measured, of one language on average: the original, and every row's sets on a
        language's items and on English ones. splits: of a grid, which has no random rows."""
        masks = sum(seeds if row.is_random else 1 for row in self.table.rows if not (splits and row.is_random))
        others = sum(lang != ENGLISH for lang in self.items)
        return len(self.items) + others * masks * (splits or 1) * (1 + (ENGLISH in self.items))


def _spread(groups: Sequence[str]) -> list[int]:
    """The places of the first item of every group, then of the second of each that has one, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for group in groups:
        turns.append(seen[group])
        seen[group] += 1
    return sorted(range(len(groups)), key=lambda i: turns[i])


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that is measured, before any model is there. missing: what cannot be, in lines that say why."""

    corpora: Mapping[str, Corpus]
    tables: Mapping[str, TablePart]
    missing: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """What there is, in words."""
        found = [f"neurons are found on {_origins(self.corpora)}"]
        for name, part in self.tables.items():
            own = ", the project's own questions, not a benchmark" if part.is_own else ""
            instead = f" in place of {part.table.task}" if part.task != part.table.task else ""
            english = "" if ENGLISH in part.items else "; no English, so no Delta"
            languages = ",".join(part.items)
            found.append(f"Table {name}: {part.task}{instead}{own}, {part.available} items in {languages}{english}")
        return [*found, *(f"missing: {line}" for line in self.missing)]


def _origins(corpora: Mapping[str, Corpus]) -> str:
    own = any(corpus.origin.startswith("mwork-jax data") for corpus in corpora.values())
    return "the project's own documents" if own else ", ".join(corpus.origin for corpus in corpora.values())


def study_of(corpora: Mapping[str, Corpus], data: str | Path | None, settings: PaperSettings) -> Study:
    """The items of every table from a folder of data sets or, where it has none, from the project's own small set.

    corpora: {language: documents}. Each table takes the languages that its data has. Raises InputError for data that is
    there and damaged, and for fewer documents than asked.
    """
    documents_of_run(corpora, settings.run)
    tables, missing = {}, []
    for name in [part for part in settings.parts if part in TABLE_PARTS or part == "grid"]:
        number = _GRID_OF if name == "grid" else name
        part = tables.get(number) or _table_part(PACKAGED[int(number)], data, settings)
        if part is None:
            missing.append(f"Table {number}: no items of {PACKAGED[int(number)].task} in these languages; left out")
        else:
            tables[number] = part
    if "6" in settings.parts and (short := _tuning_documents(corpora, settings)) and short[-1] < max(_TUNING):
        missing.append(f"Table 6: {short[-1]} documents to tune on, the paper has up to {max(_TUNING)}")
    return Study(corpora, dict(sorted(tables.items())), tuple(missing))


def _table_part(table: TableSpec, data: str | Path | None, settings: PaperSettings) -> TablePart | None:
    """The table's own task before its stand-in, given data before the project's own; with English before without."""
    sources = dict.fromkeys((data, None))
    tasks = [name for name in (table.task, table.stand_in) if name]
    found: list[TablePart] = []
    for source in sources:
        for name in tasks:
            languages = tuple(lang for lang in settings.languages if _has(name, lang, source))
            if any(lang != ENGLISH for lang in languages):
                items = prepare(task_named(name), source, settings.table(languages))
                fewest = min(one.size for one in items.values())
                found.append(TablePart(table, TablePart(table, items).first(fewest)))
                if ENGLISH in languages:
                    return found[-1]
    return found[0] if found else None


def _has(task: str, language: str, data: str | Path | None) -> bool:
    try:
        questions(task_named(task), language, data)
    except NoData:
        return False
    return True


def _tuning_documents(corpora: Mapping[str, Corpus], settings: PaperSettings) -> tuple[int, ...]:
    fewest = min(len(corpus.detection) for lang, corpus in corpora.items() if lang != ENGLISH)
    return settings.tuning or tuple(n for n in _TUNING if n <= fewest) or (fewest,)


@dataclass(frozen=True)
class Cost:
    """What a part takes here, in seconds, estimated from a timed sample: once for all, for each item, and for each
    document that is tuned on."""

    once: float
    item: float = 0.0
    document: float = 0.0

    def seconds(self, items: int, documents: int = 0) -> float:
        return self.once + self.item * items + self.document * documents


@dataclass(frozen=True)
class PaperPlan:
    """What is measured, fixed at the first start: items of each table, documents of Table 6, and the settings."""

    settings: PaperSettings
    items: Mapping[str, int]
    tuning: tuple[int, ...]
    tuning_tasks: bool
    format: str = PLAN_FORMAT
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> PaperPlan:
        """The plan of a folder. Raises InputError for a file that is not one."""
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, value: object, path: Path) -> PaperPlan:
        """The plan that a JSON value is; path: what errors name. Raises InputError for a value that is not one."""
        try:
            found = msgspec.convert(value, cls)
        except (msgspec.ValidationError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}: damaged ({' '.join(str(error).split()):.200}); choose another --out") from None
        if found.format != PLAN_FORMAT or any(n < 1 for n in (*found.items.values(), *found.tuning)):
            raise InputError(f"{path}: not a plan of `mwork paper` (its 'format' should be {PLAN_FORMAT!r})")
        return found

    def check(self, asked: PaperSettings, path: Path) -> None:
        """Raises InputError where another study was begun in this folder; its parts and its budget may change."""
        for name, value in asdict(self.settings).items():
            new = getattr(asked, name)
            if name not in ("parts", "budget") and new != value:
                raise InputError(
                    f"{path}: begun with {name} {_said(value)}, now {_said(new)} is asked; go on with the same, or "
                    "choose another output folder with --out"
                )


def _said(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)


def costs_of(model: Model, study: Study, settings: PaperSettings) -> dict[str, Cost]:
    """What each part takes, from a timed sample of this model on this machine: eight items of each task and eight
    documents, under four masks, the second time they are measured; the first time is compilation. Items that share
    their beginning cost less where all are measured, so for passages it is an upper bound."""
    losses = prepare_losses(model, study.corpora, settings.table(tuple(study.corpora), settings.held_out))
    first = next(one for lang, one in losses.items() if lang != ENGLISH)
    compiled, document = _timed(model, first.first(_SAMPLE))
    languages, others = len(study.corpora), len(study.corpora) - 1
    costs = {"detection": Cost(2 * compiled + document * work_of_run(languages, settings.run))}
    splits = len(_grid(model.config.num_layers)[0]) * len(_grid(model.config.num_layers)[1])
    per_item: dict[str, float] = {}
    for name, part in study.tables.items():
        sample = next(one for lang, one in part.first(_SAMPLE).items() if lang != ENGLISH)
        compiled, per_item[name] = _timed(model, sample.as_chat(model) if settings.chat else sample)
        if name in settings.parts:
            costs[name] = Cost(2 * compiled, per_item[name] * part.passes(settings.seeds))
        if name == _GRID_OF and "grid" in settings.parts:
            costs["grid"] = Cost(compiled, per_item[name] * part.passes(settings.seeds, splits))
    if "lens" in settings.parts:
        costs["lens"] = Cost(compiled + 2 * document * languages * _LENS_PROMPTS)
    if "6" in settings.parts:
        runs = others * 2 * settings.seeds
        tuned = _BACKWARD * TuneSettings().epochs * runs * document
        held_out = (runs * len(_tuning_documents(study.corpora, settings)) + 1) * settings.held_out * languages
        costs["6"] = Cost(2 * compiled + held_out * document, 2 * runs * sum(per_item.values()), tuned)
    return costs


def _timed(model: Model, evaluation: Evaluation) -> tuple[float, float]:
    """Seconds of compilation, and of one item under one mask after it: of the original model and of masks that begin in
    the first layer, half way up and at three quarters, as the rows of tables do."""
    layers = model.config.num_layers
    masks = [NeuronMask.keep_all(model.config), *(_beginning(model, at) for at in (0, layers // 2, 3 * layers // 4))]
    spent = []
    for _ in range(2):
        begun = time.perf_counter()
        answered(evaluation, model, masks)
        spent.append(time.perf_counter() - begun)
    return max(0.0, spent[0] - spent[1]), spent[1] / (evaluation.size * len(masks))


def _beginning(model: Model, layer: int) -> NeuronMask:
    """One neuron of a layer off: what a mask costs depends on the first layer that it touches."""
    groups = {name: members.copy() for name, members in NeuronSet.empty(model.config).groups.items()}
    groups["ffn_up"][layer, 0] = True
    return NeuronMask.keep_all(model.config).drop(NeuronSet(groups))


def plan_of(study: Study, settings: PaperSettings, costs: Mapping[str, Cost]) -> PaperPlan:
    """How many items each table has: as asked, or as many as the budget has time for, never fewer than an interval
    needs.

    The parts whose cost does not depend on items come first. What is left of the budget is shared out evenly over the
    tables; what a table with few items does not need goes to the others. Table 6 measures tasks too where a budget
    allows it.
    """
    tables = {name: part for name, part in study.tables.items() if name in settings.parts}
    sizes = {name: part.available for name, part in tables.items()}
    if "grid" in costs:
        sizes["grid"] = study.tables[_GRID_OF].available
    if settings.items is not None:
        sizes = {name: min(settings.items, size) for name, size in sizes.items()}
    with_tasks = "6" in costs
    tuning = _tuning_documents(study.corpora, settings) if with_tasks else ()
    if settings.budget is not None:
        tuning = _tuning_within(settings.budget / len(costs), costs["6"], tuning) if tuning else ()
        fewest = {name: min(sizes[name], study.tables[_GRID_OF if name == "grid" else name].fewest) for name in sizes}
        once = sum(cost.seconds(0, sum(tuning)) for cost in costs.values())
        sizes = _shared_out(settings.budget - once, costs, sizes, fewest)
        spent = once + sum(costs[name].item * n for name, n in sizes.items())
        with_tasks = with_tasks and spent + costs["6"].item * _fewest_of(sizes) <= settings.budget
    seconds = {
        name: cost.seconds(_fewest_of(sizes) * with_tasks if name == "6" else sizes.get(name, 0), sum(tuning))
        for name, cost in costs.items()
    }
    return PaperPlan(settings, sizes, tuning, with_tasks, seconds=seconds)


def _tuning_within(seconds: float, cost: Cost, documents: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of documents that can be tuned on in so many seconds: the first of them or, where there is no time
    for one, fewer documents."""
    can = int(seconds / cost.document) if cost.document > 0 else sum(documents)
    fitting = tuple(n for i, n in enumerate(documents) if sum(documents[: i + 1]) <= can)
    return fitting or (max(_FEWEST_ITEMS, min(can, documents[0])),)


def _fewest_of(sizes: Mapping[str, int]) -> int:
    return min(sizes.values(), default=0)


def _shared_out(
    left: float, costs: Mapping[str, Cost], most: Mapping[str, int], fewest: Mapping[str, int]
) -> dict[str, int]:
    """{part: items} that the seconds left are enough for, the same time for each as long as it has items."""
    sizes: dict[str, int] = {}
    # From the part that needs the least time, as what it leaves is for the others.
    waiting = sorted(most, key=lambda name: costs[name].item * most[name])
    for n, name in enumerate(waiting):
        share = max(0.0, left) / (len(waiting) - n)
        can = int(share / costs[name].item) if costs[name].item > 0 else most[name]
        sizes[name] = max(fewest[name], min(most[name], can))
        left -= costs[name].item * sizes[name]
    return {name: sizes[name] for name in most}


def plan_lines(plan: PaperPlan) -> list[str]:
    """What it costs here, part by part."""
    lines = []
    for name, seconds in plan.seconds.items():
        title = {"detection": "neurons, held-out loss", "grid": "grid of N1 and N2", "lens": "Figure 1"}.get(name)
        items = f", {plan.items[name]} items per language" if name in plan.items else ""
        if name == "6":
            tasks = "held-out loss and tasks" if plan.tuning_tasks else "held-out loss"
            items = f", {', '.join(map(str, plan.tuning))} documents, {tasks}"
        lines.append(f"{title or f'Table {name}'}{items}: about {_duration(seconds)}")
    whole = sum(plan.seconds.values())
    over = plan.settings.budget is not None and whole > plan.settings.budget * 1.05
    more = ": more than the budget, as intervals need so many items" if over else ""
    return [*lines, f"in all about {_duration(whole)}{more}, from a timed sample of this model on this machine"]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def settle(
    model: Model,
    study: Study,
    settings: PaperSettings,
    out: str | Path,
    *,
    keep: bool = True,
    log: Log = lambda _: None,
) -> PaperPlan:
    """The plan of a folder: that of its first start where there is one, else one from a timed sample, written there
    with `keep`.
    Parts that are asked for later get the items that they would have had. Raises InputError where a study with other
    settings was begun there."""
    path = Path(out) / PLAN_FILE
    known = agreed(lambda: read_json(path) if path.exists() else None)
    earlier = None if known is None else PaperPlan.of(known, path)
    if earlier is not None:
        earlier.check(settings, path)
        settled = {*earlier.items, *(("6",) if earlier.tuning else ())}
        if {part for part in settings.parts if part != "lens"} <= settled:
            return earlier
    log("timing a sample of each part")
    costs = costs_of(model, study, settings)  # by all processes together, each with a clock of its own
    plan = PaperPlan.of(agreed(lambda: msgspec.to_builtins(plan_of(study, settings, costs))), path)
    if earlier is not None:
        tuning = (earlier.tuning, earlier.tuning_tasks) if earlier.tuning else (plan.tuning, plan.tuning_tasks)
        parts = tuple(part for part in PARTS if part in {*earlier.settings.parts, *settings.parts})
        plan = PaperPlan(replace(settings, parts=parts), {**plan.items, **earlier.items}, *tuning, seconds=plan.seconds)
    if keep:
        write_json(path, msgspec.to_builtins(plan))
    return plan


def run_paper(
    model: Model,
    study: Study,
    plan: PaperPlan,
    settings: PaperSettings,
    out: str | Path,
    *,
    log: Log = lambda line: None,
    command: Sequence[str] = (),
) -> None:
    """Measures every part of `settings.parts` into its folder of `out`. Finished work is kept, and the same call goes
    on. Raises InputError for what cannot be used, before the part that needs it."""
    out = Path(out)
    log("neurons, and the held-out loss without them")
    run = run_pipeline(model, study.corpora, settings.run, out, log_samples=False, command=command)
    others = [lang for lang in study.corpora if lang != ENGLISH]
    neurons = {lang: NeuronSet.load(out / "neurons" / f"{lang}.json") for lang in others}
    for name in [part for part in PARTS if part in settings.parts]:
        if name == "lens":
            log("Figure 1: languages by layer")
            _lens(model, study, neurons, settings, out, command)
        elif name == "6":
            log("Table 6 and Figure 4: tuning")
            _tune(model, study, plan, neurons, settings, out, command)
        elif (_GRID_OF if name == "grid" else name) in study.tables:
            log("the grid of N1 and N2" if name == "grid" else f"Table {name}")
            _table(model, study, plan, name, run, neurons, settings, out, command)


def _table(
    model: Model,
    study: Study,
    plan: PaperPlan,
    name: str,
    run: RunResults,
    neurons: Mapping[str, NeuronSet],
    settings: PaperSettings,
    out: Path,
    command: Sequence[str],
) -> None:
    part = study.tables[_GRID_OF if name == "grid" else name]
    items, folder = part.first(plan.items[name]), out / (name if name == "grid" else f"table-{name}")
    asked = settings.table(tuple(items), plan.items[name])
    if name == "grid":
        first, last = _grid(model.config.num_layers)
        asked = replace(asked, n1=first, n2=last)
    if part.table.mode:
        scores = {lang: NeuronScores.load(out / "scores" / f"{lang}.safetensors") for lang in run.provenance.data}
        neurons = select_neurons(scores, settings.rule, part.table.mode)
        for language, own in neurons.items():
            own.save(folder / "neurons" / f"{language}.json")
    sets = {lang: neurons[lang] for lang in items if lang != ENGLISH}
    ready_evaluations(model, items, sets, asked)
    cache = ResultCache(out / CACHE_FOLDER)
    table = run_table(model, part.table, items, sets, asked, cache, samples=folder, command=command)
    write_results(folder / "results.json", TablesResults.of([table]))


def _grid(layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """N1 and N2 of the grid: half of the default, the default, and one and a half times of it."""
    split = StageSplit.default(layers)
    first, last = (
        tuple(sorted({max(1, round(n / 2)), n, max(1, round(1.5 * n))}))
        for n in (split.understanding, split.generation)
    )
    return tuple(n for n in first if n + last[-1] <= layers), last


def _lens(
    model: Model,
    study: Study,
    neurons: Mapping[str, NeuronSet],
    settings: PaperSettings,
    out: Path,
    command: Sequence[str],
) -> None:
    prompts = {lang: corpus.held_out[:_LENS_PROMPTS] for lang, corpus in study.corpora.items()}
    origins = {lang: f"{corpus.origin}, held out" for lang, corpus in study.corpora.items()}
    asked = LensSettings()
    results = run_lens(model, prompts, origins, neurons, asked, out / "lens", command=command)
    write_results(out / "lens" / "lens.json", results)


def _tune(
    model: Model,
    study: Study,
    plan: PaperPlan,
    neurons: Mapping[str, NeuronSet],
    settings: PaperSettings,
    out: Path,
    command: Sequence[str],
) -> None:
    corpora = {lang: corpus for lang, corpus in study.corpora.items() if lang != ENGLISH}
    most = max(plan.tuning)
    held_out = {
        lang: HeldOut(corpus.held_out[: settings.held_out], corpus.clusters[: settings.held_out], corpus.origin)
        for lang, corpus in study.corpora.items()
    }
    tasks = {}
    if plan.tuning_tasks:
        count = _fewest_of(plan.items)
        tasks = {part.task: part.first(count) for name, part in study.tables.items() if name in plan.items}
    results, _ = run_enhancement(
        model,
        {lang: list(corpus.detection[:most]) for lang, corpus in corpora.items()},
        {lang: corpus.origin for lang, corpus in corpora.items()},
        neurons,
        EvaluationSuite(held_out, tasks),
        EnhanceSettings(plan.tuning, settings.seeds, tune=TuneSettings(max_tokens=settings.max_tokens)),
        out / "tuning",
        command=command,
    )
    write_results(out / "tuning" / "results.json", results)
