"""What a folder holds: the results, sets, scores and lens of one model, read and checked before anything is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.lens.logit_lens import LENS_FORMAT
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import NeuronSet
from mwork_jax.runtime.files import read_json
from mwork_jax.select.rules import DEFAULT_RULE, Rule, activated

_RESULTS_FORMAT = "mwork-results-1"
_SAME = ("weights", "tokenizer", "layers", "hidden_size")  # what makes two models one


@dataclass(frozen=True, eq=False)
class LoadedResults:
    """Everything that one folder says about one model; parts that are not there are None or empty.

    run: what `mwork run` wrote. tables: Tables 2 to 5 of `mwork evaluate`; grids: those over
    N1 and N2. study: the tuning of `mwork enhance`.
    """

    folder: Path
    model: Mapping[str, Any]
    run: Mapping[str, Any] | None = None
    tables: tuple[Mapping[str, Any], ...] = ()
    grids: tuple[Mapping[str, Any], ...] = ()
    study: Mapping[str, Any] | None = None
    lens: Mapping[str, Any] | None = None
    neurons: Mapping[str, NeuronSet] = field(default_factory=dict)
    scores: Mapping[str, NeuronScores] = field(default_factory=dict)

    @cached_property
    def split(self) -> StageSplit:
        """N1 and N2: the run's, else a table's, else the default for this depth."""
        for made in (self.run and self.run["made_by"], *self.tables):
            if made:
                return StageSplit(**made["stages"])
        return StageSplit.default(self.model["layers"])

    @property
    def rule(self) -> str:
        """The rule that the sets were found with."""
        return self._provenance("rule") or (self.run or {}).get("made_by", {}).get("settings", {}).get(
            "rule", DEFAULT_RULE
        )

    @property
    def mode(self) -> str:
        """The mode that the sets were found with; "all" where it needs English and there are no scores of English."""
        mode = self._provenance("mode") or "minus_english"
        return "all" if mode == "minus_english" and self.scores and ENGLISH not in self.scores else mode

    def _provenance(self, name: str) -> str | None:
        sets = (s.provenance.get(name) for lang, s in self.neurons.items() if lang != ENGLISH)
        return next((value for value in sets if value), None)

    @cached_property
    def shared_basis(self) -> Mapping[str, NeuronSet]:
        """The sets whose overlap is worth showing: all that is activated for a language where there are scores, since
        English is taken away from the others in the sets themselves; else the sets. Empty for fewer than two."""
        asked = self._scores_answer_the_rule
        sets = {lang: activated(s, self.rule) for lang, s in self.scores.items()} if asked else dict(self.neurons)
        return sets if len(sets) > 1 else {}

    @property
    def _scores_answer_the_rule(self) -> bool:
        """Whether all scores say what is activated by the rule: lape compares languages, and a tolerant rule may ask of
        more documents than some scores remember."""
        rule = Rule.parse(self.rule)
        remembered = all(rule.missing(s.documents) < s.kept for s in self.scores.values())
        return bool(self.scores) and rule.kind != "lape" and remembered

    @property
    def basis_note(self) -> str:
        whole = "everything activated, before other languages are taken away"
        kind = whole if self._scores_answer_the_rule else f"mode {self.mode}"
        return f"Rule {self.rule}, {kind}."


def load_results(folder: str | Path) -> LoadedResults:
    """What a folder holds, itself and one level below (`tables/results.json`, say).

    Raises InputError for a folder that is missing, empty or foreign, for a damaged file in it, and for results of two
    models.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that `mwork run`, `evaluate`, `detect` or `lens` wrote")
    found = list(_results(folder))
    neurons = {p.stem: NeuronSet.load(p) for p in sorted((folder / "neurons").glob("*.json"))}
    scores = {p.stem: NeuronScores.load(p) for p in sorted((folder / "scores").glob("*.safetensors"))}
    models = {part.where: part.model for part in found}
    for kind, parts in (("neurons", neurons), ("scores", scores)):
        models |= {f"{folder / kind}, {lang}": m for lang, p in parts.items() if (m := p.provenance.get("model"))}
    if not models:
        raise InputError(
            f"{folder}: nothing to report; results.json (of `mwork run`, `evaluate`, `enhance`), lens.json, scores/ or "
            "neurons/ is needed"
        )
    model = _one_model(models)
    run, study, lens = (_only([part for part in found if part.kind == kind]) for kind in ("run", "study", "lens"))
    tables, grids = ([p for p in found if p.kind.split()[0] == kind] for kind in ("table", "grid"))
    for part in (*tables, *grids):
        _only([other for other in found if other.kind == part.kind])
    order = [*(run or {}).get("original", {}), *(lens or {}).get("data", {})]
    return LoadedResults(
        folder,
        model,
        run,
        tuple(part.value for part in tables),
        tuple(part.value for part in grids),
        study,
        lens,
        _in_order(neurons, order),
        _in_order(scores, order),
    )


class _Part(NamedTuple):
    """One result: of which kind (a table's with its number and task), in which file, of which model."""

    kind: str
    where: str
    model: Mapping[str, Any]
    value: Mapping[str, Any]


def _results(folder: Path) -> Iterator[_Part]:
    """What the files of a folder hold, each checked to be whole."""
    for path in _there(folder, "results.json"):
        results = _object(path, _RESULTS_FORMAT)
        if "tables" in results:
            for table in _fits(path, results["tables"], [TABLE]):
                kind = "table" if "stages" in table else "grid"
                _fits(path, table, _SPLIT_TABLE if kind == "table" else _GRID)
                name = f"{kind} {table['table']} {table['task']['name']}"
                yield _Part(name, f"{path}, {name}", table["model"], table)
        else:
            kind = "run" if "languages" in results else "study"
            whole = _fits(path, results, RUN if kind == "run" else STUDY)
            yield _Part(kind, str(path), whole["made_by"]["model"], whole)
    for path in _there(folder, "lens.json"):
        whole = _fits(path, _object(path, LENS_FORMAT), LENS)
        yield _Part("lens", str(path), whole["model"], whole)


def _there(folder: Path, name: str) -> Iterator[Path]:
    yield from sorted(p for p in (folder / name, *folder.glob(f"*/{name}")) if p.is_file())


def _in_order(parts: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """English first, then in the order of the results, then as they come."""
    places = {lang: i for i, lang in enumerate((ENGLISH, *order))}
    return dict(sorted(parts.items(), key=lambda part: places.get(part[0], len(places))))


def _object(path: Path, form: str) -> dict[str, Any]:
    body = read_json(path)
    if not isinstance(body, dict) or body.get("format") != form:
        raise InputError(f"{path}: not a file of this project (its 'format' should be {form!r})")
    return body


def _only(parts: Sequence[_Part]) -> Any:
    """The one result of its kind, or None."""
    if len(parts) > 1:
        where = " and ".join(part.where for part in parts)
        raise InputError(f"{where}: two results of the same kind in one folder; report each by itself")
    return parts[0].value if parts else None


def _one_model(models: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The model that all parts are of; InputError where two differ."""
    (first, model), *others = models.items()
    for name, other in others:
        if any(model.get(k) != other.get(k) for k in _SAME):
            raise InputError(
                f"results of different models in one folder: {first} is of {_described(model)}, {name} of "
                f"{_described(other)}; report each in a folder of its own"
            )
    return model


def _described(model: Mapping[str, Any]) -> str:
    return f"{model.get('source')} (weights {model.get('weights')})"


# What the files must have to be shown. An object needs the fields listed, "*" stands for each of its values; [x] is a
# list of x with something in it, (x, y) one of just these two; a type is a value of that type, float any number.
_MODEL = {"source": str, "dtype": str, "layers": int, "weights": str}
_STAGES = {"layers": int, "understanding": int, "generation": int}
_PAIR = {"own": float, "english": float}
_ROW = {
    **dict.fromkeys(("under", "s_attn", "s_ffn", "gen"), bool),
    "neurons": str,
    **dict.fromkeys(("eng", "n_eng", "delta_eng", "delta_n_eng", "delta"), float),
    "delta_ci95": (float, float),
}
RUN = {
    "made_by": {"model": _MODEL, "settings": {"seeds": int, "rule": str, "languages": [str]}, "stages": _STAGES},
    "original": {},
    "languages": {
        "*": {
            "neurons": int,
            "share": float,
            **dict.fromkeys(("everywhere", "under", "s_attn", "s_ffn", "gen"), _PAIR),
            "random": {"own": [float], "own_mean": float, "english_mean": float},
        }
    },
    "rows": [_ROW],
}
TABLE = {
    "table": int,
    "stage": str,
    "task": {"name": str, "score": str},
    "model": _MODEL,
    "original": {"*": {"*": float}},
    "rows": [_ROW],
}
_SPLIT_TABLE = {"stages": _STAGES}
_GRID = {"rows": [{"understanding": int, "generation": int}]}
STUDY = {
    "made_by": {"model": _MODEL},
    "original": {"*": {"*": float}},
    "rows": [
        {"task": str, "language": str, "documents": int, "neurons": str, "eng": float, "n_eng": float}
        | {"delta_eng": float, "delta_n_eng": float, "delta_n_eng_ci95": (float, float)}
    ],
}
LENS = {
    "model": _MODEL,
    "settings": {"top": int},
    "labels": {"columns": [str]},
    "data": {"*": {"documents": int}},
    "shares": [{"language": str, "neurons_off": int, "top_k": [[float]]}],
    "examples": [{"language": str, "tokens": [str], "layers": [[{"token": str, "label": str, "probability": float}]]}],
}


def _fits(path: Path, value: Any, needed: Any, where: str = "") -> Any:
    """The value, if it is as described; else InputError that names the file, the field, and what would be right."""
    if isinstance(needed, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f"{path}: damaged ({where or 'it'} should be an object)")
        if "*" in needed and not value:
            raise InputError(f"{path}: damaged ({where} should have something in it)")
        fields = dict.fromkeys(value, needed["*"]) if "*" in needed else needed
        for name, inner in fields.items():
            if name not in value:
                raise InputError(f"{path}: damaged ({f'{where}.{name}'.strip('.')} is missing)")
            _fits(path, value[name], inner, f"{where}.{name}".strip("."))
    elif isinstance(needed, tuple):
        if not isinstance(value, list) or len(value) != len(needed):
            raise InputError(f"{path}: damaged ({where} should be a list of {len(needed)} numbers)")
        for i, item in enumerate(value):
            _fits(path, item, needed[i], f"{where}[{i}]")
    elif isinstance(needed, list):
        if not isinstance(value, list) or not value:
            raise InputError(f"{path}: damaged ({where} should be a list with something in it)")
        for i, item in enumerate(value):
            _fits(path, item, needed[0], f"{where}[{i}]")
    elif not isinstance(value, (int, float) if needed is float else needed):
        raise InputError(f"{path}: damaged ({where} should be a {needed.__name__}, it is {value!r:.40})")
    return value
