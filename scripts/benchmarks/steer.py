"""Steering against Hugging Face PyTorch with hooks: greedy answers of Gemma 3 270M, setting by setting.

Both sides answer English questions as `mwork steer` asks them (MGSM's first 32, or the project's own), with at most 32
tokens, under each of 12 settings drawn from 4 languages x 5 recipes x 8 strengths, vectors at 3 layers. Values and
vectors are random, of the size of what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import mwork_jax as mw
from benchmarks.models import hf_answers, torch_checkpoint
from benchmarks.pairing import fastest, paired, seconds
from mwork_jax.config import ModelConfig
from mwork_jax.evaluate.steering import steering_prompts
from mwork_jax.evaluate.tasks import task_named
from mwork_jax.intervention import Intervention
from mwork_jax.load.packaged import packaged_gguf
from mwork_jax.model.decode_queue import Filling
from mwork_jax.model.generate import generations
from mwork_jax.neurons import FFN_GROUPS, NeuronSet, group_widths

PROMPTS, NEW = 32, 32
BATCHES = (16, 32)  # prompts that Hugging Face answers together
LANGUAGES, STRENGTHS, LAYERS, SAMPLED = 4, 8, (4, 9, 13), 12
RECIPES = ("scale", "replace", "add", "gate", "steer")
DTYPES = ("float32", "bfloat16")


def rows(rounds: int, data: str | None = None) -> Iterator[dict[str, Any]]:
    """12 sampled settings on both sides; then the whole sweep on ours alone."""
    models = {d: mw.load_model("gemma3-270m", dtype=d) for d in DTYPES}
    config, tokenizer = models["float32"].config, models["float32"].tokenizer
    path = packaged_gguf("gemma3-270m")
    theirs = {d: torch_checkpoint(path, d) for d in DTYPES}
    folder, items = (f"{data}/mgsm", PROMPTS) if data else (None, None)
    asked = steering_prompts(task_named("mgsm"), "en", ("de",), folder, items)
    work = _Work(asked.texts, asked.stop)
    edits = _edits(config)
    sampled = [edits[i] for i in np.random.default_rng(0).choice(len(edits), SAMPLED, replace=False)]
    few, short = sampled[:2], work.first(8)
    ours_dtype = fastest({d: partial(_ours, m, short, few) for d, m in models.items()})
    theirs_dtype = fastest({d: partial(_theirs, m, tokenizer, short, few, 8) for d, m in theirs.items()})
    ours, hf = models[ours_dtype], theirs[theirs_dtype]
    batch = int(fastest({str(b): partial(_theirs, hf, tokenizer, work, few[:1], b) for b in BATCHES}))
    _check_same(_ours(models["float32"], short, sampled), _theirs(theirs["float32"], tokenizer, short, sampled, 8))
    about = {
        "benchmark": "steer", "model": "Gemma 3 270M", "ours_dtype": ours_dtype,
        "theirs": f"Hugging Face PyTorch with hooks, batches of {batch}", "theirs_dtype": theirs_dtype,
    }  # fmt: skip
    filled: list[Filling] = []
    ours_run = partial(_ours, ours, work, sampled, filled.append)
    times = paired(ours_run, partial(_theirs, hf, tokenizer, work, sampled, batch), min(rounds, 3))
    what = f"{SAMPLED} settings x {len(work.prompts)} prompts, {filled[-1].tokens} tokens written"
    yield about | {"what": what} | times
    whole = seconds(partial(_ours, ours, work, edits))
    each = times["theirs_seconds"] / SAMPLED
    yield about | {
        "what": f"one of {len(edits)} settings, theirs from the {SAMPLED}", "ours_seconds": whole / len(edits),
        "theirs_seconds": each, "ratio": each * len(edits) / whole, "ratio_min": each * len(edits) / whole,
        "ratio_max": each * len(edits) / whole,
    }  # fmt: skip


@dataclass(frozen=True)
class _Work:
    """Prompts, and where their answers end."""

    prompts: Sequence[str]
    stop: Sequence[str]

    def first(self, count: int) -> _Work:
        return _Work(self.prompts[:count], self.stop)


def line(row: dict[str, Any]) -> str:
    sides = f"ours {row['ours_seconds']:.2f} s ({row['ours_dtype']}), {row['theirs']} {row['theirs_seconds']:.2f} s"
    ratio = f"{row['ratio']:.2f} times as fast ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
    return f"{row['model']}, {row['what']}: {sides} ({row['theirs_dtype']}), {ratio}"


def _edits(config: ModelConfig) -> list[Intervention]:
    """Every setting of the sweep: languages x recipes x strengths, the recipe with vectors at every layer."""
    edits = []
    for language in range(LANGUAGES):
        rng = np.random.default_rng(language)
        widths = group_widths(config)
        neurons = NeuronSet(
            {g: (rng.random((config.num_layers, w)) < 0.02) & (g in FFN_GROUPS) for g, w in widths.items()}
        )
        values = rng.normal(0, 0.1, (config.num_layers, config.ffn_width)).astype(np.float32)
        vectors = rng.normal(0, 1, (config.num_layers, config.hidden_size)).astype(np.float32)
        none = Intervention.none(config)
        for strength in np.linspace(0.25, 2, STRENGTHS):
            given = {group: (strength * values).astype(np.float32) for group in FFN_GROUPS}
            edits.append(none.scale(neurons, 1 - float(strength)))
            edits.append(none.replace(neurons, given))
            edits.append(none.add(neurons, given))
            edits.append(none.replace(neurons, given, at="gate"))
            edits += [none.steer(layer, vectors[layer], float(strength)) for layer in LAYERS]
    return edits


def _ours(
    model: mw.Model, work: _Work, edits: Sequence[Intervention], watch: Callable[[Filling], None] | None = None
) -> list[list[str]]:
    return generations(model, work.prompts, edits, max_new_tokens=NEW, stop=work.stop, watch=watch)


def _theirs(hf: Any, tokenizer: Any, work: _Work, edits: Sequence[Intervention], batch: int) -> list[list[str]]:
    answers = []
    for edit in edits:
        with ExitStack() as hooks:
            for handle in _hooks(hf, edit):
                hooks.callback(handle.remove)
            answers.append(hf_answers(hf, tokenizer, work.prompts, NEW, work.stop, batch))
    return answers


def _hooks(hf: Any, edit: Intervention) -> Iterator[Any]:
    """Forward hooks where the intervention does something, and nowhere else."""
    import torch

    def tensor(array: Any) -> Any:
        return torch.tensor(np.asarray(array)).to(hf.dtype)

    for index, layer in enumerate(hf.model.layers):
        for site in ("gate", "neuron"):
            factor, offset = (np.asarray(getattr(each, site)[index]) for each in (edit.factors, edit.offsets))
            if (factor != 1).any() or offset.any():
                f, o = tensor(factor), tensor(offset)
                if site == "gate":
                    yield layer.mlp.act_fn.register_forward_hook(lambda m, i, out, f=f, o=o: out * f + o)
                else:
                    yield layer.mlp.down_proj.register_forward_pre_hook(lambda m, i, f=f, o=o: (i[0] * f + o,))
        if np.asarray(edit.steering[index]).any():
            v = tensor(edit.steering[index])
            yield layer.register_forward_hook(
                lambda m, i, out, v=v: (out[0] + v, *out[1:]) if isinstance(out, tuple) else out + v
            )


def _check_same(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> None:
    """Both sides wrote the same, but for ties that rounding decides."""
    same = [a == b for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    if np.mean(same) < 0.9:
        raise ValueError(f"the two sides wrote the same for {np.mean(same):.0%} of the prompts only")
