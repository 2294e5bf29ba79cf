"""Tasks of lm-evaluation-harness under many masks and interventions at once.

The harness defines the tasks: it makes the requests, filters the responses and computes the metrics. The requests are
made once, answered under all conditions side by side (what masks share is computed once), and each condition's
responses then go through the harness's own `evaluate`, so that a number here is the number there.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.errors import JaxRuntimeError

from mwork_jax.errors import InputError
from mwork_jax.evaluate.lm_eval_model import LM, MworkLM, Request, Response
from mwork_jax.intervene.stages import StageSetting, StageSplit
from mwork_jax.intervention import Edit, Intervention
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.results import (
    ConditionKind,
    DataInfo,
    LmEvalResults,
    LmEvalRow,
    LmEvalScore,
    LmEvalTask,
    NeuronSetInfo,
    Provenance,
    versions,
)
from mwork_jax.runtime.cache import ResultCache, fingerprint
from mwork_jax.runtime.distributed import agreed
from mwork_jax.runtime.progress import Progress
from mwork_jax.samples import Sample, SampleAnswer, samples_path, write_samples
from mwork_jax.settings import LmEvalSettings

if TYPE_CHECKING:
    from lm_eval.api.task import Task

VERSION = "lm-eval-1"  # of how requests are answered; cached responses of another version are not mixed in
_CHUNK = 32  # conditions that are answered and kept together, as in `runner`
_BOOTSTRAP = 1000  # draws for the standard errors that have no formula; the harness's 100,000 take minutes each
_SEEDS = {"random": 0, "numpy": 1234, "fewshot": 1234}  # the harness's own
_SECTION = "lm-eval"


@dataclass(frozen=True, eq=False)
class LmEvalCondition:
    """What is done to the model. under, neurons, setting, seed: as of a `SampleAnswer`."""

    under: ConditionKind
    edit: Edit
    neurons: str = ""
    setting: str = ""
    seed: int | None = None

    @property
    def key(self) -> str:
        """What tells its effect from others', the same for a mask and the intervention that does the same."""
        edit = self.edit if isinstance(self.edit, Intervention) else Intervention.from_mask(self.edit)
        return edit.fingerprint


def conditions_of(
    model: Model, neurons: Mapping[str, NeuronSet], settings: LmEvalSettings
) -> tuple[list[LmEvalCondition], dict[str, NeuronSet]]:
    """The original model, then each language's neurons off and as many random ones for each seed; and the sets that are
    switched off: of each language the parts that `settings.off` names. Raises InputError for a set of another model."""
    keep = NeuronMask.keep_all(model.config)
    setting = StageSetting.parse(settings.off)
    split = StageSplit.of(model.config.num_layers, settings.n1, settings.n2)
    chosen = {lang: setting.choose(own, split) for lang, own in neurons.items()}
    conditions = [LmEvalCondition("original", keep)]
    for language, own in chosen.items():
        conditions.append(LmEvalCondition("own", keep.drop(own), language, setting.name))
        for seed in range(settings.seeds):
            off = keep.drop(own.random_like(seed))
            conditions.append(LmEvalCondition("random", off, language, setting.name, seed))
    return conditions, chosen


@dataclass(frozen=True, eq=False)
class LmEvalTasks:
    """Tasks of the harness, loaded. loaded: as its TaskManager gives them."""

    loaded: Any

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.loaded["tasks"]


def lm_eval_tasks(names: Sequence[str], include_path: str | Path | None, shots: int | None = None) -> LmEvalTasks:
    """The tasks, groups or tags of these names, from the harness and from the YAML files in `include_path`, whose names
    go first. shots: worked examples, each task's own number where None; a task that fixes 0 keeps it. Their Python
    functions run, as in the harness.

    Raises InputError, one line, for a folder that is missing, a file that is no YAML, a name that is not there, and
    for a task that cannot be set up: its file is wrong, or its data cannot be had.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        _check_yaml(Path(include_path))
    with _within_harness():
        manager = _manager(TaskManager, names, include_path)
        missing = next((name for name in names if name not in manager.all_tasks), None)
        if missing is not None:
            near = difflib.get_close_matches(missing, manager.all_tasks, 1)
            hint = f"did you mean {near[0]}?" if near else "--include-path names a folder of your own"
            raise InputError(f"{missing!r:.80} is no task of lm-evaluation-harness; {hint}")
        loaded = _loaded(manager, names)
        for task in loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            task.set_config(key="num_fewshot", value=own or 0 if shots is None or own == 0 else shots)
    return LmEvalTasks(loaded)


def run_lm_eval(
    model: Model,
    tasks: LmEvalTasks,
    conditions: Sequence[LmEvalCondition],
    settings: LmEvalSettings,
    cache: ResultCache,
    *,
    neurons: Mapping[str, NeuronSet] | None = None,
    samples: str | Path | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> LmEvalResults:
    """Every task's metrics under every condition, the first of which is the original model.

    neurons: the sets that are off, for the provenance. Responses that the cache holds are not computed again. samples:
    an output folder, for `samples/lm-eval-TASK.jsonl` with every item's response and metrics under each condition, None
    for no such file. Raises InputError, naming the task, for whatever the harness refuses.
    """
    if not conditions or conditions[0].under != "original":
        raise InputError("lm-eval: the first condition is the original model; it is missing")
    with progress or Progress() as bar, _within_harness():
        asked = _Answers(MworkLM(model), conditions, cache, bar, settings)
        evaluated = list(asked.evaluated(tasks))
    first = evaluated[0]
    infos = {name: _task_info(name, first) for name in first["results"]}
    results = LmEvalResults(
        kind="lm_eval",
        provenance=Provenance(model.info, _data(tasks, first), settings, _versions(), tuple(command)),
        tasks=infos,
        neurons={lang: NeuronSetInfo.of(own) for lang, own in (neurons or {}).items()},
        rows=tuple(
            LmEvalRow(task, one.under, one.neurons, one.setting, one.seed, _scores(result["results"][task], info))
            for one, result in zip(conditions, evaluated, strict=True)
            for task, info in infos.items()
        ),
    )
    if samples is not None:
        for task in tasks.tasks:
            lines = _samples(task, conditions, [result["samples"][task] for result in evaluated], infos[task])
            write_samples(samples_path(samples, f"{_SECTION}-{task.replace('/', '-')}"), lines)
    return results


class _Answers:
    """The responses to all requests of the tasks under all conditions."""

    def __init__(
        self,
        lm: MworkLM,
        conditions: Sequence[LmEvalCondition],
        cache: ResultCache,
        bar: Progress,
        settings: LmEvalSettings,
    ):
        self.lm, self.conditions, self.cache, self.bar, self.settings = lm, conditions, cache, bar, settings

    def evaluated(self, tasks: LmEvalTasks) -> Iterator[Any]:
        """What the harness's `evaluate` makes of each condition's responses, in their order."""
        for task in tasks.tasks.values():
            task.set_fewshot_seed(seed=_SEEDS["fewshot"])
        known: dict[str, list[list[Response]]] = {}
        for index in range(len(self.conditions)):
            yield self._evaluated(tasks, index, known)
            for task in tasks.tasks.values():
                task.build_all_requests = lambda **options: None  # those of the first condition stand
                for request in task.instances:
                    request.resps, request.filtered_resps = [], {}

    def _evaluated(self, tasks: LmEvalTasks, index: int, known: dict[str, list[list[Response]]]) -> Any:
        from lm_eval.evaluator import evaluate

        def respond(kind: str, requests: Sequence[Request]) -> list[Response]:
            if kind not in known:
                known[kind] = self._responses(kind, requests)
            return known[kind][index]

        options = {
            "limit": self.settings.items,
            "bootstrap_iters": _BOOTSTRAP,
            "apply_chat_template": self.settings.chat,
            "fewshot_as_multiturn": self.settings.chat,
        }
        return _of_harness("", lambda: evaluate(lm=_Recorded(self.lm, respond), task_dict=tasks.loaded, **options))

    def _responses(self, kind: str, requests: Sequence[Request]) -> list[list[Response]]:
        """[conditions][requests]; task by task, so that the cache holds each by itself."""
        responses: list[list[Response]] = [[] for _ in self.conditions]
        self.bar.expect(len(requests) * len({one.key for one in self.conditions}))
        for task, own in groupby(requests, key=lambda request: request.task_name):  # type: ignore[attr-defined]
            for whole, part in zip(responses, self._of_task(kind, task, list(own)), strict=True):
                whole.extend(part)
        return responses

    def _of_task(self, kind: str, task: str, requests: Sequence[Request]) -> list[list[Response]]:
        about = {
            "evaluator": VERSION,
            "kind": kind,
            "requests": fingerprint([list(request.args) for request in requests]),
            "model": self.lm.engine.key,
        }
        edits = {one.key: one.edit for one in self.conditions}
        keys = {off: {**about, "off": off} for off in edits}
        known: dict[str, Any] = agreed(partial(self._cached, keys, len(requests)))
        self.bar.add(len(requests) * len(known), free=True)
        missing = [off for off in keys if off not in known]
        for begin in range(0, len(missing), _CHUNK):
            chunk = missing[begin : begin + _CHUNK]
            self.bar.describe(f"{task}: {len(chunk)} conditions of {len(missing)}")
            answers = self.lm.answers(kind, requests, [edits[off] for off in chunk], self.bar.callback())
            self.cache.put_all([(keys[off], own) for off, own in zip(chunk, answers, strict=True)])
            known |= dict(zip(chunk, answers, strict=True))
        return [[_response(value) for value in known[one.key]] for one in self.conditions]

    def _cached(self, keys: Mapping[str, Mapping[str, object]], count: int) -> dict[str, Any]:
        """What the cache holds, by what is off; nothing where one is damaged, as in `runner`."""
        values = {off: self.cache.get(key) for off, key in keys.items()}
        known = {off: value for off, value in values.items() if isinstance(value, list) and len(value) == count}
        return {} if any(self.cache.has(key) for off, key in keys.items() if off not in known) else known


def _response(value: Any) -> Response:
    """A response as the harness takes it: JSON has lists for pairs."""
    return (float(value[0]), bool(value[1])) if isinstance(value, list | tuple) else value


class _Recorded(LM):
    """A model for the harness that gives the responses that `respond` knows; templates are those of `lm`."""

    def __init__(self, lm: MworkLM, respond: Callable[[str, Sequence[Request]], list[Response]]):
        super().__init__()
        self._lm, self._respond = lm, respond

    def loglikelihood(self, requests: Sequence[Request]) -> Any:
        return self._respond("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> Any:
        return self._respond("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Request]) -> Any:
        return self._respond("generate_until", requests)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._lm.apply_chat_template(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return self._lm.tokenizer_name


@contextlib.contextmanager
def _within_harness() -> Iterator[None]:
    """Where the harness's code runs: with its own seeds, which it sets for the whole process, put back afterwards;
    what it prints goes to stderr, and what it logs is left out. Its bootstrap must not fork: JAX has threads."""
    states = random.getstate(), np.random.get_state()
    random.seed(_SEEDS["random"])
    np.random.seed(_SEEDS["numpy"])
    alone, logger = os.environ.get("DISABLE_MULTIPROC"), logging.getLogger("lm_eval")
    level = logger.level
    os.environ["DISABLE_MULTIPROC"] = "1"
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        logger.setLevel(level)
        os.environ.pop("DISABLE_MULTIPROC") if alone is None else os.environ.update(DISABLE_MULTIPROC=alone)


def _of_harness(what: str, call: Callable[[], Any]) -> Any:
    """What the harness gives. A task is a program and its data are somebody's: whatever it raises becomes one line."""
    try:
        return call()
    except (InputError, JaxRuntimeError):  # not the task's: ours, or the device's
        raise
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        reason = " ".join(str(root).split()) or type(root).__name__
        raise InputError(
            f"lm-evaluation-harness: {what + ': ' if what else ''}{type(root).__name__}: {reason:.300}"
        ) from None


def _check_yaml(folder: Path) -> None:
    """Raises InputError for a folder that is not there, and for a file in it that is no YAML: the harness skips those
    without a word."""
    import yaml

    if not folder.is_dir():
        raise InputError(f"--include-path {folder}: no such folder; one with tasks as YAML files is needed")
    for path in sorted(folder.rglob("*.yaml")):
        try:
            yaml.compose(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: no YAML ({' '.join(str(error).split()):.200})") from None


def _manager(task_manager: Any, names: Sequence[str], include_path: str | Path | None) -> Any:
    """The harness's TaskManager. Its own tasks are left out where the folder has all that is asked for: reading their
    thousands of files takes seconds."""
    if include_path is not None:
        own = task_manager(include_path=str(include_path), include_defaults=False)
        if all(name in own.all_tasks for name in names) and not _others_needed(own, names):
            return own
    return task_manager(include_path=None if include_path is None else str(include_path))


def _others_needed(manager: Any, names: Sequence[str]) -> bool:
    """Whether a group among the names has members that this manager does not know."""
    groups = [manager.task_index[name].cfg or {} for name in names if name in manager.all_groups]
    members = [member for group in groups for member in group.get("task", ())]
    return any(not isinstance(member, str) or member not in manager.all_subtasks for member in members)


def _loaded(manager: Any, names: Sequence[str]) -> Any:
    """The tasks, one name after the other, so that an error names the one that fails."""
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        part = _of_harness(f"task {name}", partial(manager.load, [name]))
        for kind, known in loaded.items():
            known.update(part.get(kind, {}))
    return loaded


def _task_info(name: str, evaluated: Any) -> LmEvalTask:
    config, counts = evaluated["configs"].get(name, {}), evaluated["n-samples"].get(name, {})
    better = evaluated["higher_is_better"].get(name) or {}
    return LmEvalTask(
        version=str(evaluated["versions"].get(name)),
        output_type=str(config.get("output_type", "group")),
        shots=int(evaluated["n-shot"].get(name) or 0),
        items=int(counts.get("effective") or evaluated["results"][name].get("sample_len") or 0),
        higher_is_better={metric: known for metric, known in better.items() if isinstance(known, bool)},
    )


def _scores(values: Mapping[str, object], info: LmEvalTask) -> tuple[LmEvalScore, ...]:
    """A task's metrics, of each filter, with their standard errors."""
    scores = []
    for name, value in values.items():
        metric, comma, rule = name.partition(",")
        if comma and not metric.endswith("_stderr") and (number := _number(value)) is not None:
            stderr = _number(values.get(f"{metric}_stderr,{rule}"))
            scores.append(LmEvalScore(metric, rule, number, stderr))
    return tuple(scores)


def _number(value: object) -> float | None:
    """A finite number of Python's or NumPy's, or None."""
    if isinstance(value, bool | int | float | np.number | np.bool_) and np.isfinite(float(value)):
        return float(value)
    return None


def _data(tasks: LmEvalTasks, evaluated: Any) -> dict[str, DataInfo]:
    """{task: where its items are from}; the fingerprint is of what the model was asked."""
    data = {}
    for name, task in tasks.tasks.items():
        path, subset = task.config.dataset_path, task.config.dataset_name
        origin = " ".join(str(part) for part in (path, subset) if part) or "the task's own"
        asked = fingerprint([[str(part) for part in request.args] for request in task.instances])
        data[name] = DataInfo(origin, int(evaluated["n-samples"][name]["effective"]), asked)
    return data


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {**versions(), "lm-eval": version("lm-eval"), "datasets": version("datasets")}


def _samples(
    task: str, conditions: Sequence[LmEvalCondition], logged: Sequence[Sequence[Any]], info: LmEvalTask
) -> Iterator[Sample]:
    """One line for each item (and filter, where a task has several), as the harness logs them under each condition."""
    languages = {one.neurons for one in conditions}
    language = next((part for part in task.split("_") if part in languages), "")
    several = len({one["filter"] for one in logged[0]}) > 1
    for places in zip(*logged, strict=True):
        first = places[0]
        item = f"{first['doc_id']} {first['filter']}" if several else str(first["doc_id"])
        answers = tuple(_sample_answer(one, sample, info) for one, sample in zip(conditions, places, strict=True))
        prompt = first["arguments"][0][0]
        yield Sample(f"{_SECTION}-{task}", item, language, str(prompt), (str(first["target"]),), answers)


def _sample_answer(one: LmEvalCondition, sample: Any, info: LmEvalTask) -> SampleAnswer:
    metrics = {name: number for name in sample["metrics"] if (number := _item_number(sample[name])) is not None}
    name = next(iter(metrics), None)
    sign = -1.0 if name is not None and info.higher_is_better.get(name) is False else 1.0
    score = 0.0 if name is None else sign * metrics[name]
    return SampleAnswer(one.under, score, one.neurons, one.setting, one.seed, _answer(sample), None, metrics)


def _item_number(value: Any) -> float | None:
    """An item's part of a metric; of a sum and its weight, as of a perplexity, the sum for each unit of weight."""
    if isinstance(value, tuple | list) and len(value) == 2:
        total, weight = map(_number, value)
        return total / weight if total is not None and weight else None
    return _number(value)


def _answer(sample: Any) -> str | None:
    """What the model wrote, after the filter, or the choice that it finds likeliest; None where it only reads."""
    responses, arguments = sample["filtered_resps"], sample["arguments"]
    if len(responses) == 1 and isinstance(responses[0], str):
        return responses[0]
    pairs = [r for r in responses if isinstance(r, tuple | list) and len(r) == 2]
    if len(pairs) == len(responses) > 1:
        return str(arguments[max(range(len(pairs)), key=lambda index: pairs[index][0])][1]).strip()
    return None
