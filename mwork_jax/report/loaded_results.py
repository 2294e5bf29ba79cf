"""What a folder holds: the results, sets, scores and lens of one model, read and checked before anything is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import ENGLISH
from mwork_jax.model.identity import ModelInfo, model_of
from mwork_jax.neurons import NeuronSet, check_language, files_of_languages
from mwork_jax.paper import PLAN_FILE
from mwork_jax.report.names import check_distinct
from mwork_jax.results import (
    AnyResults,
    DetectResults,
    EnhanceResults,
    LensResults,
    LmEvalResults,
    NeuronSetInfo,
    RunResults,
    SteerResults,
    TableResult,
    TablesResults,
    read_results,
)
from mwork_jax.samples import SAMPLES_FOLDER, Sample, read_samples
from mwork_jax.select.modes import MODES, Mode
from mwork_jax.select.rules import DEFAULT_RULE, Rule, activated

T = TypeVar("T")
_FILES = ("results.json", "lens.json")


@dataclass(frozen=True, eq=False)
class LoadedResults:
    """Everything that one folder holds of one model; parts that are not there are None or empty.

    run: of `mwork run`; tables, grids: of `mwork evaluate`; lm_eval: of `mwork evaluate --lm-eval`; tuning: of
    `mwork enhance`; lens: of `mwork lens`; steer: of `mwork steer`; detect: of `mwork detect`; neurons, scores:
    {language: its set, its scores}; samples: the answers that were saved; is_paper: whether
    `mwork paper` made the folder.
    """

    folder: Path
    model: ModelInfo
    run: RunResults | None = None
    tables: tuple[TableResult, ...] = ()
    grids: tuple[TableResult, ...] = ()
    tuning: EnhanceResults | None = None
    lens: LensResults | None = None
    steer: SteerResults | None = None
    neurons: Mapping[str, NeuronSet] = field(default_factory=dict)
    scores: Mapping[str, NeuronScores] = field(default_factory=dict)
    detect: DetectResults | None = None
    samples: tuple[Sample, ...] = ()
    lm_eval: LmEvalResults | None = None
    is_paper: bool = False

    @cached_property
    def split(self) -> StageSplit:
        """N1 and N2: the run's, else a table's, else the default for this depth."""
        stages = [part.stages for part in (self.run, *self.tables) if part is not None and part.stages is not None]
        return stages[0] if stages else StageSplit.default(self.model.layers)

    @property
    def rule(self) -> str:
        """The rule that the sets were selected with."""
        of_run = self.run.provenance.settings.rule if self.run is not None else DEFAULT_RULE
        return self._of_sets("rule") or of_run

    @property
    def mode(self) -> str:
        """The mode of the sets; "all" where there are scores, and not of the languages that it needs."""
        mode = Mode.parse(self._of_sets("mode") or MODES[0])
        return str(mode) if not self.scores or mode.is_possible(self.scores) else "all"

    def _of_sets(self, name: str) -> str | None:
        values = (s.provenance.get(name) for lang, s in self.neurons.items() if lang != ENGLISH)
        return next((value for value in values if isinstance(value, str) and value), None)

    @cached_property
    def overlap_sets(self) -> Mapping[str, NeuronSet]:
        """The sets whose overlap is worth showing: all that is activated for a language where there are scores, since
        English is taken away from the others in the sets themselves; else the sets. Empty for fewer than two."""
        if self._scores_answer_the_rule:
            sets = {lang: activated(scores, self.rule) for lang, scores in self.scores.items()}
        else:
            sets = dict(self.neurons)
        return sets if len(sets) > 1 else {}

    @property
    def _scores_answer_the_rule(self) -> bool:
        """Whether all scores tell what is activated by the rule: lape compares languages, and a tolerant rule may need
        more documents than some scores remember."""
        rule = Rule.parse(self.rule)
        remembered = all(rule.missing(s.documents) < s.kept for s in self.scores.values())
        return bool(self.scores) and rule.kind != "lape" and remembered

    @property
    def overlap_note(self) -> str:
        whole = "everything activated, before other languages are taken away"
        kind = whole if self._scores_answer_the_rule else f"mode {self.mode}"
        return f"Rule {self.rule}, {kind}."


def load_results(folder: str | Path) -> LoadedResults:
    """What a folder holds, itself and one level below (`tables/results.json`, say).

    Raises InputError for a folder that is missing, empty or foreign, for a damaged file in it, for results of two
    models, and for neurons beside a run that switched off others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        needed = "no such folder; give one that `mwork run`, `evaluate`, `detect` or `lens` wrote"
        raise InputError(f"{folder}: {'a file; give the folder that it is in' if folder.is_file() else needed}")
    files = list(_result_files(folder))
    neurons = {lang: NeuronSet.load(p) for lang, p in files_of_languages(folder / "neurons", ".json").items()}
    scores = {lang: NeuronScores.load(p) for lang, p in files_of_languages(folder / "scores", ".safetensors").items()}
    for kind, parts, suffix in (("neurons", neurons, "json"), ("scores", scores, "safetensors")):
        for language, part in parts.items():
            check_language(folder / kind / f"{language}.{suffix}", part.provenance)
    # What detection says of its model, its scores say themselves.
    models = {str(path): r.provenance.model for path, r in files if not isinstance(r, DetectResults)}
    for kind, parts in (("neurons", neurons), ("scores", scores)):
        models |= _models_of(folder / kind, parts)
    if not models:
        raise InputError(
            f"{folder}: nothing to report; results.json (of `mwork run`, `evaluate`, `enhance`), lens.json, scores/ or "
            "neurons/ is needed"
        )
    run, tuning, lens = _only(files, RunResults), _only(files, EnhanceResults), _only(files, LensResults)
    steer = _only(files, SteerResults)
    tables = _tables(files)
    check_distinct((*neurons, *scores), str(folder))
    check_distinct([table.task.name for table in tables], str(folder))
    check_distinct([row.task for row in tuning.rows] if tuning else (), str(folder))
    check_distinct([shares.language for shares in lens.shares] if lens else (), str(folder))
    check_distinct([row.language for row in steer.grid] if steer else (), str(folder))
    if run is not None:
        _check_neurons(folder, run.neurons, neurons)
    order = [*(run.original if run else ()), *(lens.provenance.data if lens else ())]
    loaded = LoadedResults(
        folder,
        _one_model(models),
        run,
        tuple(t for t in tables if t.kind == "table"),
        tuple(t for t in tables if t.kind == "grid"),
        tuning,
        lens,
        steer,
        _in_order(neurons, order),
        _in_order(scores, order),
        next((r for _, r in files if isinstance(r, DetectResults)), None),
        tuple(sample for path in _sample_files(folder) for sample in read_samples(path)),
        _only(files, LmEvalResults),
        (folder / PLAN_FILE).is_file(),
    )
    _check_selection(loaded)
    return loaded


def _check_selection(loaded: LoadedResults) -> None:
    """Raises InputError, naming the folder, for a rule or a mode that is none."""
    try:
        Rule.parse(loaded.rule)
        Mode.parse(loaded.mode)
    except InputError as error:
        raise InputError(f"{loaded.folder}: {error}") from None


def _sample_files(folder: Path) -> list[Path]:
    """In the same folders as results."""
    return sorted(path for where in (folder, *folder.glob("*/")) for path in where.glob(f"{SAMPLES_FOLDER}/*.jsonl"))


def _result_files(folder: Path) -> Iterator[tuple[Path, AnyResults]]:
    for name in _FILES:
        for path in sorted(p for p in (folder / name, *folder.glob(f"*/{name}")) if p.is_file()):
            yield path, read_results(path)


def _tables(files: Sequence[tuple[Path, AnyResults]]) -> list[TableResult]:
    """All tables and grids; InputError where two are of the same kind."""
    found: dict[tuple[str, int | str, str], tuple[Path, TableResult]] = {}
    for path, results in files:
        for table in results.tables if isinstance(results, TablesResults) else ():
            if table.identity in found:
                where = f"{found[table.identity][0]} and {path}, {table.kind} {table.table}"
                raise InputError(f"{where}: two results of the same kind in one folder; report each by itself")
            found[table.identity] = path, table
    return [table for _, table in found.values()]


def _only(files: Sequence[tuple[Path, AnyResults]], kind: type[T]) -> T | None:
    """The one result of its kind, or None."""
    parts = [(path, results) for path, results in files if isinstance(results, kind)]
    if len(parts) > 1:
        where = " and ".join(str(path) for path, _ in parts)
        raise InputError(f"{where}: two results of the same kind in one folder; report each by itself")
    return parts[0][1] if parts else None


def _models_of(folder: Path, parts: Mapping[str, NeuronSet] | Mapping[str, NeuronScores]) -> dict[str, ModelInfo]:
    """The models that sets or scores are of, where they name one."""
    named = {f"{folder}, {lang}": model_of(part.provenance, f"{folder}, {lang}") for lang, part in parts.items()}
    return {where: model for where, model in named.items() if model is not None}


def _check_neurons(folder: Path, used: Mapping[str, NeuronSetInfo], neurons: Mapping[str, NeuronSet]) -> None:
    """Raises InputError where a set beside a run's results is not the one that the run switched off."""
    for language, info in used.items():
        if language in neurons and neurons[language].fingerprint != info.fingerprint:
            raise InputError(
                f"{folder / 'neurons' / language}.json: not the set that results.json was measured with; repeat "
                "`mwork run`, or move one of them to another folder"
            )


def _in_order(parts: Mapping[str, T], order: Sequence[str]) -> dict[str, T]:
    """English first, then in the order of the results, then as they come."""
    ranks = {lang: i for i, lang in enumerate((ENGLISH, *order))}
    return dict(sorted(parts.items(), key=lambda part: ranks.get(part[0], len(ranks))))


def _one_model(models: Mapping[str, ModelInfo]) -> ModelInfo:
    """The model that all parts are of; InputError where two differ."""
    (first, model), *others = models.items()
    for name, other in others:
        if not model.is_same_as(other):
            raise InputError(
                f"results of different models in one folder: {first} is of {model}, {name} of {other}; report each in "
                "a folder of its own"
            )
    return model
