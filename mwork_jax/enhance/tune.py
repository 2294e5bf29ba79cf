"""Tuning a language's neurons: from a model, a neuron set and documents to a tuned model.

Many runs (languages, numbers of documents, seeds, random controls, learning rates) go through one program over one copy
of the frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mwork_jax.corpus import Encoded, documents_key, encoded
from mwork_jax.enhance.checkpoint import Checkpoints, Losses
from mwork_jax.enhance.neuron_params import NeuronIndex, NeuronParams, check_fits, gather, index_of, scatter, widths
from mwork_jax.enhance.optimizer import Rates
from mwork_jax.enhance.packing import PackedRows, batch_at, empty_rows, pack, steps_per_epoch
from mwork_jax.enhance.train import (
    Frozen,
    Program,
    State,
    begin,
    note_validation,
    train_step,
    validation_nats,
)
from mwork_jax.errors import InputError
from mwork_jax.model.model import Model
from mwork_jax.model.tokens import Document
from mwork_jax.neurons import NeuronSet
from mwork_jax.runtime.cache import fingerprint
from mwork_jax.settings import TuneSettings
from mwork_jax.sharding import fetch, mesh_of, on_mesh_of, parts_of, put


@dataclass(frozen=True, eq=False)
class TuningRun:
    """One run: which neurons, on which documents, and what may differ between runs of one program."""

    neurons: NeuronSet
    documents: Sequence[Document | Encoded]
    name: str = "tuning"
    seed: int = 0
    learning_rate: float | None = None  # that of the settings unless given


@dataclass(frozen=True)
class History:
    """How one run went: nats per token. `train[i]` is the loss of step i before its update; `validation` is [steps
    made, loss] pairs, the first of them before any step. Losses that are not finite are in neither; `diverged` is
    True where there was one."""

    train: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    diverged: bool = False

    @property
    def best(self) -> tuple[int, float]:
        """Steps made and loss where the validation loss was lowest; its values are those that are kept."""
        return min(self.validation, key=lambda pair: pair[1])


@dataclass(frozen=True, eq=False)
class TuningResult:
    """What a run gives: the tuned neurons in the compact form, megabytes; `merged` makes a model of them."""

    run: TuningRun
    index: NeuronIndex
    values: NeuronParams
    history: History

    def kept(self, model: Model) -> float:
        """What share of the change is left where it is rounded to the model's dtype: 1 in float32, less in bfloat16
        where the change is small beside the weights."""
        base, dtype = fetch(jax.jit(gather)(model.decoder, self.index)), model.decoder.dtype
        change = {name: self.values[name] - base[name] for name in base}
        rounded = {name: self.values[name].astype(dtype).astype(np.float32) - base[name] for name in base}
        whole = sum(float(np.vdot(c, c)) for c in change.values())
        return sum(float(np.vdot(change[n], rounded[n])) for n in change) / whole if whole else 1.0

    def merged(self, model: Model) -> Tuned:
        """The model with the tuned neurons in their places; every other weight is the same, bit for bit."""
        decoder = jax.jit(scatter)(model.decoder, self.index, self.values)
        name, ignored = f"{model.source} ({self.run.name})", model.ignored_in_answers
        return Tuned(decoder, model.tokenizer, name, None, ignored, memory=model.memory, base=model, result=self)


@dataclass(frozen=True, kw_only=True)
class Tuned(Model):
    """A tuned model: a Model as any other, that knows its `base` and the `result` of its tuning."""

    base: Model
    result: TuningResult

    @property
    def history(self) -> History:
        return self.result.history

    @property
    def neurons(self) -> NeuronSet:
        return self.result.run.neurons

    @cached_property
    def plain(self) -> Model:
        """The same as a Model without its past, to be an argument of jit."""
        return Model(self.decoder, self.tokenizer, self.source, memory=self.memory)


def fine_tune(
    model: Model,
    neurons: NeuronSet,
    documents: Sequence[Document | Encoded],
    settings: TuneSettings = TuneSettings(),
    *,
    checkpoints: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tuned:
    """Tunes a neuron set by causal language modelling on documents (section 4 of the paper) and returns the tuned
    model.

    Nothing but the set's rows and columns is trained, and no gradient or optimizer state exists for anything else. A
    share of the documents is kept out and decides which step's values are returned. checkpoints: a folder; the same
    call goes on from the newest checkpoint in it. progress is called with (steps made, steps in all).

    Raises InputError for an empty or foreign neuron set, too few documents for `steps`, a checkpoint of other
    work, and a loss that is no longer finite.
    """
    run = TuningRun(neurons, documents)
    (result,) = fine_tune_many(model, [run], settings, checkpoints=checkpoints, progress=progress)
    return result.merged(model)


def fine_tune_many(
    model: Model,
    runs: Sequence[TuningRun],
    settings: TuneSettings = TuneSettings(),
    *,
    checkpoints: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TuningResult]:
    """`fine_tune` for several runs in one program; each gets what it would get on its own.

    A run that diverges stays at its best values and is marked in its history, while others go on; where all do,
    InputError. Otherwise as `fine_tune`.
    """
    data = ready(model, runs, settings)
    room = widths([run.neurons for run in runs])
    index = _stack([index_of(run.neurons, room) for run in runs])
    rates = _stack([_rates(run, d, settings) for run, d in zip(runs, data, strict=True)])
    mesh = mesh_of(model.decoder)
    index, rates = (jax.tree.map(lambda x: put(x, mesh, "runs", *(None,) * (x.ndim - 1)), t) for t in (index, rates))
    with on_mesh_of(model.decoder):
        work = _Work(*begin(model.decoder, index, rates), data, settings)
    identity = {
        "model": model.key,
        "runs": [_described(run, d) for run, d in zip(runs, data, strict=True)],
        "settings": asdict(settings),
    }
    kept_in = Checkpoints(checkpoints, identity) if checkpoints is not None else nullcontext()
    with kept_in as kept, on_mesh_of(model.decoder):
        work.go(kept, progress)
        return [TuningResult(run, *work.of(index)) for index, run in enumerate(runs)]


def ready(model: Model, runs: Sequence[TuningRun], settings: TuneSettings) -> list[Packed]:
    """Every run's documents, packed. Raises InputError for whatever `fine_tune_many` would not begin with."""
    if not runs:
        raise InputError("tuning: there are no runs; at least one is needed")
    for run in runs:
        check_fits(run.neurons, model.decoder, run.name)
    return [Packed.of(model, run, settings) for run in runs]


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def _rates(run: TuningRun, data: Packed, settings: TuneSettings) -> Rates:
    highest = settings.learning_rate if run.learning_rate is None else run.learning_rate
    return Rates(
        jnp.float32(highest), jnp.int32(data.steps), jnp.float32(settings.warmup), jnp.float32(settings.weight_decay),
        jnp.float32(settings.clip),
    )  # fmt: skip


def _described(run: TuningRun, data: Packed) -> dict[str, object]:
    """What determines a run, apart from the model and the settings; for its checkpoints."""
    return {
        "neurons": fingerprint({g: np.flatnonzero(m).tolist() for g, m in run.neurons.groups.items()}),
        "documents": data.fingerprint,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
    }


@dataclass(frozen=True, eq=False)
class Packed:
    """One run's documents, packed, and how many steps they are good for."""

    training: PackedRows
    validation: PackedRows
    steps: int
    seed: int
    fingerprint: str

    @classmethod
    def of(cls, model: Model, run: TuningRun, settings: TuneSettings) -> Packed:
        time = min(settings.max_tokens, model.config.max_length)
        cut = list(encoded(model, run.documents, time, where=run.name))
        held = max(1, round(settings.validation * len(cut)))
        if len(cut) < held + 1:
            raise InputError(
                f"{run.name}: {len(cut)} document; at least 2 are needed, one of them to validate the steps with"
            )
        order = np.random.default_rng([settings.seed, run.seed]).permutation(len(cut))
        training = pack([cut[i] for i in order[held:]], time)
        validation = pack([cut[i] for i in order[:held]], time)
        most = settings.epochs * steps_per_epoch(training, settings.batch)
        if settings.steps is not None and settings.steps > most:
            raise InputError(
                f"{run.name}: {settings.steps} steps asked, but {len(cut) - held} training documents make "
                f"{steps_per_epoch(training, settings.batch)} batches, {most} in {settings.epochs} epochs; ask for "
                "fewer steps or more epochs, or give more documents"
            )
        return cls(training, validation, settings.steps or most, run.seed, documents_key(cut))


class _Work:
    """The loop: steps, validations, checkpoints."""

    def __init__(self, frozen: Frozen, state: State, data: Sequence[Packed], settings: TuneSettings):
        self.frozen, self.state, self.data, self.settings = frozen, state, data, settings
        self.mesh = mesh_of(frozen.decoder)
        self.program = Program(settings.remat, settings.patience)
        self.steps = max(d.steps for d in data)
        self.losses = Losses()
        # Rows without a document change nothing and cost as much as others: a batch has no more than can be filled.
        self.batch = self._fitting(settings.batch, [len(d.training.tokens) for d in data])
        self.validated = self._fitting(settings.batch // settings.accumulate, [len(d.validation.tokens) for d in data])

    def _fitting(self, batch: int, rows: Sequence[int]) -> int:
        """As many rows of a batch as the run with most rows fills, a multiple of the devices that share them out."""
        if self.settings.accumulate > 1:  # parts have a loss each, so which rows are in one matters
            return batch
        shards = parts_of(self.mesh, "batch")
        return min(batch, -(-max(rows) // shards) * shards)

    def go(self, kept: Checkpoints | None, progress: Callable[[int, int], None] | None) -> None:
        done = self._resume(kept)
        if done is None:
            done = 0
            self._validate(0)
            if not np.isfinite(self.losses.validation[0][1]).all():
                raise InputError("tuning: the loss is not finite before the first step; are the model's weights sound?")
        for step in range(done, self.steps):
            if not self._going():
                break
            self.state, report = train_step(self.program, self.frozen, self.state, self._batch(step))
            self.losses.train.append([float(loss) for loss in fetch(report.loss)])
            if (step + 1) % self.settings.validate_every == 0 or step + 1 == self.steps:
                self._validate(step + 1)
                if kept is not None and not fetch(self.state.diverged).all():
                    kept.save(step + 1, self.state, self.losses)
            if progress is not None:
                progress(step + 1, self.steps)
        if fetch(self.state.diverged).all():
            raise self._diverged(kept)

    def of(self, run: int) -> tuple[NeuronIndex, NeuronParams, History]:
        """One run's index, its best values, and how it went."""
        index, values = fetch(jax.tree.map(lambda x: x[run], (self.frozen.neuron_index, self.state.best)))
        # A run that has ended is validated as long as others go on, but stays as it was after its last update.
        updates = int(fetch(self.state.step)[run])
        validation = {
            min(step, updates): losses[run] for step, losses in self.losses.validation if np.isfinite(losses[run])
        }
        train = [losses[run] for losses in self.losses.train[:updates]]
        history = History(train, list(validation.items()), bool(fetch(self.state.diverged)[run]))
        return index, values, history

    def _resume(self, kept: Checkpoints | None) -> int | None:
        """The steps that the newest checkpoint has made, or None where the work begins."""
        checkpoint = kept.latest(self.state) if kept is not None else None
        if checkpoint is None:
            return None
        done, self.state, self.losses = checkpoint
        return done

    def _going(self) -> bool:
        """Whether any run still changes."""
        stale, diverged = fetch((self.state.stale, self.state.diverged))
        return bool(((stale < self.settings.patience) & ~diverged).any())

    def _batch(self, step: int) -> PackedRows:
        """The rows of every run at this step: [runs, accumulate, b, t]."""
        s = self.settings
        each = [batch_at(d.training, self.batch, d.seed + s.seed, step) for d in self.data]
        stacked = PackedRows(*map(np.stack, zip(*each, strict=True)))
        parts = PackedRows(*(x.reshape(len(each), s.accumulate, -1, x.shape[-1]) for x in stacked))
        return put(parts, self.mesh, "runs", None, "batch", "time")

    def _validate(self, step: int) -> None:
        """Every run's loss on its own validation documents."""
        nats, counts = np.zeros(len(self.data)), np.zeros(len(self.data))
        for rows in self._validation_batches():
            placed = put(rows, self.mesh, "runs", "batch", "time")
            nats += fetch(validation_nats(self.program, self.frozen, self.state.values, placed)).astype(np.float64)
            counts += rows.counts.sum((1, 2))
        losses = (nats / counts).astype(np.float32)
        self.state = note_validation(self.state, put(losses, self.mesh, "runs"))
        self.losses.validation.append((step, [float(x) for x in losses]))

    def _validation_batches(self) -> Iterator[PackedRows]:
        size = self.validated
        longest = max(len(d.validation.tokens) for d in self.data)
        for first in range(0, longest, size):
            each = []
            for d in self.data:
                part = d.validation.at(np.arange(first, min(first + size, len(d.validation.tokens))))
                filler = empty_rows(d.validation, size - len(part.tokens))
                each.append(PackedRows(*map(np.concatenate, zip(part, filler, strict=True))))
            yield PackedRows(*map(np.stack, zip(*each, strict=True)))

    def _diverged(self, kept: Checkpoints | None) -> InputError:
        kept_in = f"; the last good checkpoint is kept in {kept.folder}" if kept is not None and kept.begun else ""
        elsewhere = " and another folder" if kept_in else ""
        return InputError(
            f"tuning: the loss is not finite after step {len(self.losses.train)} at learning rate "
            f"{float(np.max(fetch(self.frozen.rates.learning_rate))):g}{kept_in}; "
            f"choose a lower learning rate{elsewhere}"
        )
