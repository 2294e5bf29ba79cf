"""What a model says, item by item: the answers behind a table, as files of JSON lines and as typed values.

`OUT/samples/NAME.jsonl` has one line for each item, a `Sample`: its prompt once, and what came of it under each mask or
intervention. NAME is the section: `held-out-loss` (of `mwork run`), `table-2-xquad` and `grid-2-xquad` (of
`mwork evaluate`), `lm-eval-TASK` (of `mwork evaluate --lm-eval`), `steering` (of `mwork steer`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from mwork_jax.errors import InputError
from mwork_jax.runtime.distributed import is_first
from mwork_jax.runtime.files import atomic_path, read_jsonl

SAMPLES_FOLDER = "samples"  # within an output folder
HELD_OUT_SECTION, STEERING_SECTION = "held-out-loss", "steering"
Under = Literal["original", "own", "random", "instruction", "steered"]


@dataclass(frozen=True)
class SampleAnswer:
    """What came of an item under one condition.

    under: the original model, a language's own neurons off, as many random ones off; of steering also a plain
    instruction and an intervention. neurons: the language whose neurons are off (or that is to be written), "" for the
    original. setting: which parts are off, or the recipe. seed: of random neurons. answer: what the model wrote, or the
    choice that it finds likeliest; None where text is only read, and where the answer was not kept. score: the item's,
    higher is better, in the units of the table: points, minus nats per token, or from 0 to 1 for steering.
    answer_language: that of most of the answer's sentences; None where that is open. metrics: of tasks that have
    several, each of them as it is, whether higher is better or not; empty for the others.
    """

    under: Under
    score: float
    neurons: str = ""
    setting: str = ""
    seed: int | None = None
    answer: str | None = None
    answer_language: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One item. item: what it is about, the same id for its translations; language: of the prompt; references: the
    answers that count as right, where there are any; answers: under each condition, the original first."""

    section: str
    item: str
    language: str
    prompt: str
    references: tuple[str, ...]
    answers: tuple[SampleAnswer, ...]


@dataclass(frozen=True)
class SideBySide:
    """One item's answers to be compared: by the original model, with the language's own neurons off (or steered), and
    with as many random neurons off (or changed)."""

    sample: Sample
    original: SampleAnswer
    own: SampleAnswer
    random: SampleAnswer


def samples_path(out: str | Path, section: str) -> Path:
    return Path(out) / SAMPLES_FOLDER / f"{section}.jsonl"


def section_name(kind: str, number: int | str, task: str) -> str:
    """The section of a table or a grid of a task."""
    return f"{kind}-{number}-{task.replace('_', '-').replace(' ', '-')}"


def remove_samples(out: str | Path, section: str) -> None:
    """Removes the file of a section, whose results are replaced without their answers."""
    if is_first():
        samples_path(out, section).unlink(missing_ok=True)


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """Writes one line for each, whole or not at all; the first of several processes does. Samples are taken one by one,
    so that a generator's are never all in memory."""
    if not is_first():
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for sample in samples:
            value = msgspec.to_builtins(sample)
            for answer in value["answers"]:
                if not answer["metrics"]:  # most tasks have one score
                    del answer["metrics"]
            line = json.dumps(value, ensure_ascii=False, allow_nan=False)
            file.write(f"{line.encode(errors='replace').decode()}\n")


def read_samples(path: str | Path) -> tuple[Sample, ...]:
    """The samples of a file that `write_samples` wrote, or of all files in an output folder, or in its `samples`.
    Raises InputError, naming file and line, for what is no such file, and for a folder without one."""
    path = Path(path)
    if not path.is_dir():
        return tuple(_read(path))
    files = sorted((path / SAMPLES_FOLDER).glob("*.jsonl")) or sorted(path.glob("*.jsonl"))
    if not files:
        raise InputError(
            f"{path}: no {SAMPLES_FOLDER}/*.jsonl; `mwork run`, `evaluate` and `steer` write it (not with "
            "--no-log-samples)"
        )
    return tuple(sample for file in files for sample in _read(file))


def _read(path: Path) -> Iterable[Sample]:
    for number, row in read_jsonl(path):
        try:
            yield msgspec.convert(row, Sample)
        except (msgspec.ValidationError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}:{number}: no sample of answers ({str(error)[:200]})") from None


def side_by_side(samples: Sequence[Sample], count: int = 5) -> list[SideBySide]:
    """Up to `count` items to be read side by side, spread evenly over the scores: from those that lose most with their
    own language's neurons off to those that gain. The same for the same samples, in whatever order they come. Items in
    English are left out, as their own neurons are never off; so is what was not measured under all three.
    """
    pairs = [pair for sample in samples if (pair := _compared(sample)) is not None]
    pairs.sort(key=_place)
    at = np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)) if pairs else ()
    return [pairs[index] for index in at]


def _place(pair: SideBySide) -> tuple[float, float, str, str, str]:
    sample, before = pair.sample, pair.original.score
    return pair.own.score - before, before, sample.language, sample.item, sample.prompt


def _compared(sample: Sample) -> SideBySide | None:
    """The first setting that own and random neurons share, else the first of each."""
    original = next((a for a in sample.answers if a.under == "original"), None)
    own = [a for a in sample.answers if a.under == "steered" or (a.under, a.neurons) == ("own", sample.language)]
    random = [a for a in sample.answers if a.under == "random" and a.neurons in {each.neurons for each in own}]
    if original is None or not own or not random:
        return None
    settings = {answer.setting for answer in random}
    of_own = next((answer for answer in own if answer.setting in settings), own[0])
    of_random = next((answer for answer in random if answer.setting == of_own.setting), random[0])
    return SideBySide(sample, original, of_own, of_random)
