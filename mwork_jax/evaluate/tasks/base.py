"""What a task is: where its questions come from, how they are put to a model, and how an answer is scored.

A prompt is an opening (what to do, in the language of the task), worked examples, and the item; everything before the
item is the same for all items of a language, so its keys and values need to be computed once only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mwork_jax.corpus import BUILT_IN
from mwork_jax.errors import InputError, InputWarning
from mwork_jax.metrics import NORMALISATIONS, choice_right, normalised

_BETWEEN = "\n\n"
_HUB = "hub"  # the --data that means the Hub
_UNSPACED_AFTER_COLON = ("zh", "ja")


class NoData(InputError):
    """A task has no data in a language where it was looked for; data that is there and damaged is an InputError."""


@dataclass(frozen=True)
class Item:
    """One question. Tasks use the fields they need and leave the others empty.

    context: the text it is about (a passage, a premise, an article). references: the answers that count as right.
    choices, labels, answer: the options, their letters, and the place of the right one (-1 where there are none).
    worked: what a model answers with in an example, where that is more than the reference. group: items that share
    it are about the same text.
    """

    id: str
    language: str
    context: str = ""
    question: str = ""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    answer: int = -1
    worked: str = ""
    group: str = ""


@dataclass(frozen=True)
class Questions:
    """The items of one task in one language, others that can serve as examples, and where they were read from."""

    items: tuple[Item, ...]
    examples: tuple[Item, ...]
    origin: str
    revision: str | None = None  # of a data set on the Hub, where one is pinned


@dataclass(frozen=True)
class HubData:
    """A task's data set on the Hugging Face Hub. config: its configuration, with {language} or {name} in it; item:
    (row, language, where) -> Item, None for a row that is left out; revision: where not the newest."""

    repository: str
    config: str
    split: str
    item: Callable[[dict[str, object], str, str], Item | None]
    revision: str | None = None


class Choices(NamedTuple):
    """What a model says to an item's choices."""

    log_likelihoods: np.ndarray  # [choices], nats, summed over the tokens of each choice's continuation
    tokens: np.ndarray  # [choices], tokens of each continuation


@dataclass(frozen=True)
class Task:
    """A task as a value. `kind` says what `score` is given: the text a model generates, or its `Choices`.

    version: raised whenever prompts, filter or scores change, so that results of different versions never mix.
    languages: those of the official files that there is wording for; `built_in`: those of the project's own small set.
    files: names of an official file with {language} (the code) or {name} (the data set's own name for it) in it, the
    first that exists is read; `names` maps a code to that name.
    read: (path, language) -> items. read_own: language -> (items, examples).
    opening: language -> the instruction before all items, or "". ask: item -> the prompt's last block. reply: item ->
    what is right to go on with. stop: language -> strings that end an answer.
    scores: the names of what `score` returns, each between 0 and 1; the first is the one that tables show.
    right_or_wrong: the one of them that is 1 or 0 for each item, "" where there is none. hub: the same data on the Hub.
    """

    name: str
    version: int
    kind: Literal["generate", "choose"]
    languages: tuple[str, ...]
    files: tuple[str, ...]
    read: Callable[[Path, str], tuple[Item, ...]]
    ask: Callable[[Item], str]
    score_names: tuple[str, ...]
    score: Callable[[Item, Any], dict[str, float]]
    reply: Callable[[Item], str]
    options: Callable[[Item], tuple[str, ...]] = lambda item: item.choices
    built_in: tuple[str, ...] = ()
    read_own: Callable[[str], tuple[tuple[Item, ...], tuple[Item, ...]]] | None = None
    names: Mapping[str, str] | None = None
    opening: Callable[[str], str] = lambda language: ""
    stop: Callable[[str], tuple[str, ...]] = lambda language: ()
    max_new_tokens: int = 0
    right_or_wrong: str = ""
    hub: HubData | None = None


def questions(task: Task, language: str, data: str | Path | None = None) -> Questions:
    """The items of a task in a language, from the official files or, without `data`, from the project's own set.

    data: the file itself, the folder it lies in, a folder that has one folder per data set, "hub" for the task's data
    set on the Hugging Face Hub, or "hub:OWNER/NAME" for a copy of it. Raises InputError where the task does not have
    the language, and where a file is missing, empty, not UTF-8 or not in its format.
    """
    own_items, examples = task.read_own(language) if task.read_own and language in task.built_in else ((), ())
    if data is None:
        if not own_items:
            has = f"has {', '.join(task.built_in)} only" if task.built_in else "has none"
            raise NoData(f"{task.name}: no built-in data for language {language!r}: it {has}; use --data")
        return Questions(own_items, examples, f"{BUILT_IN}, {task.name}.{language}")
    if language not in task.languages:
        raise NoData(f"{task.name} has no language {language!r}; choose from {', '.join(task.languages)}")
    # The built-in items have worked solutions, which the official files lack.
    examples = examples or own_items
    if str(data).split(":")[0] == _HUB:
        return _hub_questions(task, language, str(data).partition(":")[2], examples)
    path = _data_file(task, language, Path(data))
    items = task.read(path, language)
    if not items:
        raise InputError(f"{path}: no items of {task.name} in this file; at least one is needed")
    return Questions(items, examples, str(path))


def _hub_questions(task: Task, language: str, repository: str, examples: tuple[Item, ...]) -> Questions:
    """The items from the Hub, through the `datasets` library; `repository` "" is the task's own."""
    hub = task.hub
    if hub is None:
        raise InputError(f"{task.name} has no data set on the Hub; give its files with --data")
    repository = repository or hub.repository
    config = hub.config.format(language=language, name=(task.names or {}).get(language, language))
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]  # the extra "hub"
    except ImportError:
        raise InputError("reading from the Hub needs the `datasets` library: pip install 'mwork-jax[hub]'") from None
    try:
        rows = load_dataset(repository, config, split=hub.split, revision=hub.revision)
    except Exception as error:  # offline, unknown, gated: many kinds, one line for all
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{repository} ({config}, {hub.split}): the Hub could not give it ({reason[:160]})") from None
    origin = f"{repository}, {config}, {hub.split}"
    read = [hub.item(dict(row), language, f"{origin}: row {n}") for n, row in enumerate(rows, 1)]
    items = tuple(item for item in read if item is not None)
    if len(items) < len(read):
        line = f"{origin}: {len(read) - len(items)} of {len(read)} questions have no answer and are left out"
        warnings.warn(line, InputWarning, stacklevel=3)
    if not items:
        raise InputError(f"{origin}: no items; at least one is needed")
    return Questions(_numbered_groups(items), examples, origin, hub.revision)


def _numbered_groups(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Items whose groups are numbered as they come, as in the official files: so the questions on one passage and on
    its translations have one group in every language."""
    numbers = {group: str(n) for n, group in enumerate(dict.fromkeys(item.group for item in items if item.group), 1)}
    return tuple(replace(item, group=numbers[item.group]) if item.group else item for item in items)


def _data_file(task: Task, language: str, data: Path) -> Path:
    if data.is_file():
        return data
    if not data.exists():
        raise InputError(f"{data}: no such file or folder; the data of {task.name} is needed there")
    name = (task.names or {}).get(language, language)
    files = [pattern.format(language=language, name=name) for pattern in task.files]
    # In a folder of data sets, each pattern is looked for one level down too.
    folders = [data, *sorted(path for path in data.iterdir() if path.is_dir())]
    for file in files:
        for folder in folders:
            if (folder / file).is_file():
                return folder / file
    raise NoData(f"{data}: nothing of {task.name} in {language!r} there; {' or '.join(files)} is needed")


def with_examples(found: Questions, shots: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """(examples, items to score): `shots` examples about different texts, none of which is scored on.

    Examples come from `found.examples`, or else from the first items, which then are not scored. No randomness:
    the same examples in every run and, for parallel data, in every language. Raises InputError where there are too few.
    """
    pool = found.examples or found.items
    first_of_group = {item.group or item.id: item for item in reversed(pool)}
    groups = list(dict.fromkeys(item.group or item.id for item in pool))[:shots]
    examples = tuple(first_of_group[group] for group in groups)
    items = found.items
    if not found.examples:
        items = tuple(item for item in items if (item.group or item.id) not in groups)
    if shots < 0 or len(examples) < shots or not items:
        raise InputError(f"{found.origin}: {shots} examples and at least one item to score are needed, it has too few")
    return examples, items


def prefix(task: Task, language: str, examples: Sequence[Item] = ()) -> str:
    """What all prompts of a language begin with: the instruction and the worked examples."""
    worked = [task.ask(item) + gap(language) + task.reply(item) for item in examples]
    parts = [part for part in (task.opening(language), *worked) if part]
    return "".join(part + _BETWEEN for part in parts)


def prompt(task: Task, item: Item, examples: Sequence[Item] = ()) -> str:
    """The whole prompt of an item: `prefix`, then the item as asked. Ends where the answer begins, without a space."""
    return prefix(task, item.language, examples) + task.ask(item)


def continuations(task: Task, item: Item) -> tuple[str, ...]:
    """The texts [choices] whose log-likelihood after `prompt` is compared."""
    return tuple(gap(item.language) + option for option in task.options(item))


def filtered(task: Task, language: str, text: str) -> str:
    """A generated text up to the first stop string, without white space around it. What is scored."""
    text = text.lstrip()
    ends = [place for stop in task.stop(language) if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].rstrip()


def gap(language: str) -> str:
    """What stands between a label and its text: nothing after a full-width colon, else a space."""
    return "" if language in _UNSPACED_AFTER_COLON else " "


def labelled(language: str, *lines: tuple[str, str]) -> str:
    """Lines of "label: text"; a line without a text ends in its label, and the model goes on there."""
    return "\n".join(label + (gap(language) + text if text else "") for label, text in lines)


def score_choices(options: Callable[[Item], tuple[str, ...]]) -> Callable[[Item, Choices], dict[str, float]]:
    """A scoring function for tasks with choices: accuracy under each of NORMALISATIONS, as in CHOICE_SCORES."""

    def score(item: Item, said: Choices) -> dict[str, float]:
        texts = options(item)
        return {
            f"accuracy_{way}": choice_right(
                normalised(said.log_likelihoods, way, texts=texts, tokens=said.tokens), item.answer
            )
            for way in NORMALISATIONS
        }

    return score


CHOICE_SCORES = tuple(f"accuracy_{way}" for way in NORMALISATIONS)


def text_of(row: Mapping[str, object], name: str, where: str) -> str:
    """The string under `name`; InputError where it is missing, empty or not a string."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: no {name!r} (a string that is not empty)")
    return value.strip().removeprefix("\ufeff")  # some passages begin with a byte order mark


def list_of(row: Any, name: str, where: str) -> list[Any]:
    """The list under `name`; InputError where it is missing, empty, not a list, or where `row` is no object."""
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: no {name!r} (a list that is not empty)")
    return value


def one_line(text: str) -> str:
    """The text with each run of white space as one space, so that a blank line ends nothing but an item."""
    return " ".join(text.split())
