"""The tasks that the four stages are tested with (the paper's Tables 2 to 5), by name."""

from mwork_jax.errors import InputError
from mwork_jax.evaluate.tasks.base import (
    Choices,
    Item,
    NoData,
    Questions,
    Task,
    continuations,
    filtered,
    prefix,
    prompt,
    questions,
    with_examples,
)
from mwork_jax.evaluate.tasks.mgsm import MGSM
from mwork_jax.evaluate.tasks.xcopa import XCOPA
from mwork_jax.evaluate.tasks.xcsqa import XCSQA, XCSQA_LETTER
from mwork_jax.evaluate.tasks.xlsum import HEADLINES, XLSUM
from mwork_jax.evaluate.tasks.xquad import XQUAD

TASKS = {task.name: task for task in (XQUAD, MGSM, XCSQA, XCSQA_LETTER, XLSUM, XCOPA, HEADLINES)}

__all__ = [
    "TASKS",
    "Choices",
    "Item",
    "NoData",
    "Questions",
    "Task",
    "continuations",
    "filtered",
    "prefix",
    "prompt",
    "questions",
    "task_named",
    "with_examples",
]


def task_named(name: str) -> Task:
    """The task of that name; InputError where there is none."""
    if name not in TASKS:
        raise InputError(f"task {name!r} is not known; choose {', '.join(TASKS)}")
    return TASKS[name]
