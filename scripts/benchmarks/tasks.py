"""Answers to real tasks under many masks, against Hugging Face PyTorch doing it the usual way.

The usual way: for each mask, zero the weights, generate in batches with stop strings, restore. Gemma 3 270M answers
XQuAD and MGSM prompts as `mwork evaluate` gives them; each side in the dtype and the batch that are fastest for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mwork_jax as mw
from benchmarks.models import hf_answers, torch_checkpoint, zeroed
from benchmarks.pairing import fastest, paired
from benchmarks.sweep import sets_of_stages
from mwork_jax.evaluate.table_run import prepare
from mwork_jax.evaluate.tasks import TASKS
from mwork_jax.load.packaged import packaged_gguf
from mwork_jax.model.decode_queue import Filling
from mwork_jax.model.generate import generations
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.settings import TableSettings

MASKS = 8
DTYPES = ("float32", "bfloat16")
BATCHES = (16, 48)  # prompts that Hugging Face generates for together
WORK = (("xquad", ("en", "de", "zh"), 0, 48), ("mgsm", ("en", "de"), 2, 48))  # task, languages, shots, prompts


def rows(rounds: int, data: str | None = None, prompts: int | None = None) -> Iterator[dict[str, Any]]:
    """Each task in each language: seconds of both sides, and how full the slots were."""
    models = {d: mw.load_model("gemma3-270m", dtype=d) for d in DTYPES}
    theirs = {d: torch_checkpoint(packaged_gguf("gemma3-270m"), d) for d in DTYPES}
    sets = sets_of_stages(models["float32"].config, MASKS)
    chosen: tuple[str, str, int] | None = None
    for name, languages, shots, count in WORK:
        folder = None if data is None else f"{data}/{name}"
        settings = TableSettings(languages, prompts or count, shots=shots)
        for language, evaluation in prepare(TASKS[name], folder, settings).items():
            if language not in languages:
                continue
            task = evaluation.task
            work = _Work(list(evaluation.prompts), task.max_new_tokens, tuple(task.stop(language)))
            if chosen is None:
                chosen = _best(models, theirs, work, sets)
            ours_dtype, theirs_dtype, batch = chosen
            filled: list[Filling] = []
            ours = partial(_ours, models[ours_dtype], work, sets, filled.append)
            hf = partial(_theirs, theirs[theirs_dtype], models["float32"].tokenizer, work, sets, batch)
            ours()  # compiles
            times = paired(ours, hf, rounds, warm=False)
            yield {
                "benchmark": "tasks", "model": "Gemma 3 270M", "ours_dtype": ours_dtype,
                "what": f"{name} {language}, {MASKS} masks x {len(work.prompts)} prompts",
                "theirs": f"Hugging Face generate in batches of {batch}, weights zeroed", "theirs_dtype": theirs_dtype,
                "steps_run": filled[-1].slot_steps, "steps_needed": filled[-1].tokens, **times,
            }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    sides = f"ours {row['ours_seconds']:.1f} s ({row['ours_dtype']}), {row['theirs']} {row['theirs_seconds']:.1f} s"
    ratio = f"{row['ratio']:.2f} times as fast ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
    fill = f"steps run / needed {row['steps_run'] / row['steps_needed']:.2f}"
    return f"{row['model']}, {row['what']}: {sides} ({row['theirs_dtype']}), {ratio}; {fill}"


@dataclass(frozen=True)
class _Work:
    """Prompts of one task in one language, and where their answers end."""

    prompts: list[str]
    max_new_tokens: int
    stop: tuple[str, ...]

    def first(self, count: int) -> _Work:
        return _Work(self.prompts[:count], self.max_new_tokens, self.stop)


def _best(
    models: dict[str, mw.Model], theirs: dict[str, Any], work: _Work, sets: Sequence[NeuronSet]
) -> tuple[str, str, int]:
    """Our dtype, theirs, and their batch, each tried on a few prompts; and both sides write the same in float32, but
    for what rounding decides."""
    few, tokenizer = work.first(16), models["float32"].tokenizer
    ours = fastest({d: partial(_ours, m, few, sets[:4]) for d, m in models.items()})
    hf = fastest({d: partial(_theirs, m, tokenizer, few, sets[:2], 16) for d, m in theirs.items()})
    whole = {str(b): partial(_theirs, theirs[hf], tokenizer, work, sets[:1], b) for b in BATCHES}
    one, other = _ours(models["float32"], few, sets[:2]), _theirs(theirs["float32"], tokenizer, few, sets[:2], 16)
    same = [a == b for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    if sum(same) < 0.9 * len(same):
        raise ValueError(f"the two sides wrote the same for {sum(same)} of {len(same)} prompts only")
    return ours, hf, int(fastest(whole))


def _ours(
    model: mw.Model, work: _Work, sets: Sequence[NeuronSet], watch: Callable[[Filling], None] | None = None
) -> list[list[str]]:
    masks = [NeuronMask.keep_all(model.config).drop(neurons) for neurons in sets]
    return generations(model, work.prompts, masks, max_new_tokens=work.max_new_tokens, stop=work.stop, watch=watch)


def _theirs(hf: Any, tokenizer: Any, work: _Work, sets: Sequence[NeuronSet], batch: int) -> list[list[str]]:
    answers = []
    for neurons in sets:
        with zeroed(hf, neurons):
            answers.append(hf_answers(hf, tokenizer, work.prompts, work.max_new_tokens, work.stop, batch))
    return answers
