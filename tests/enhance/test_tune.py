"""Tuning neurons: the compact form against the whole model, packing, many runs in one program, going on."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mwork_jax as mw
from mwork_jax.corpus import Encoded
from mwork_jax.enhance import TuneSettings, TuningRun, fine_tune, fine_tune_many, selected_only, selection_in, tune
from mwork_jax.enhance.neuron_params import changes, gather, index_of, parameter_arrays, scatter, widths
from mwork_jax.enhance.optimizer import Rates, adamw, rate_at
from mwork_jax.enhance.packing import batch_at, pack, steps_per_epoch
from mwork_jax.enhance.train import Program, train_step, validation_nats
from mwork_jax.enhance.train import begin as begin_runs
from mwork_jax.model.decoder import forward_decoder, hidden_states, logits_of
from mwork_jax.model.loss import summed_nats
from mwork_jax.neurons import NeuronMask, NeuronSet, group_widths
from support.paths import ROOT
from support.tiny import DISTINCT, pair, tokens

SETTINGS = TuneSettings(
    learning_rate=1e-2, epochs=4, batch=4, max_tokens=24, validate_every=4, weight_decay=0.1, remat=False, clip=0.3
)


def random_set(config, share=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return NeuronSet({g: rng.random((config.num_layers, w)) < share for g, w in group_widths(config).items()})


def documents(count=24, seed=0):
    """Random documents of few different tokens: there is something to learn."""
    rng = np.random.default_rng(seed)
    return [tokens(1, int(n), seed=seed + i)[0] % 11 + 3 for i, n in enumerate(rng.integers(4, 20, count))]


@pytest.fixture(scope="module")
def model():
    return pair("llama", 2).model


@pytest.fixture(scope="module")
def tuned(model):
    return fine_tune(model, random_set(model.config), documents(), SETTINGS)


@pytest.mark.parametrize("family", DISTINCT)
def test_changes_beside_the_weights_equal_changed_weights(family):
    decoder = pair(family, 2).decoder
    neurons = random_set(decoder.config)
    index = index_of(neurons, widths([neurons]))
    base = gather(decoder, index)
    noise = np.random.default_rng(1)
    values = {n: v + 0.1 * noise.normal(size=v.shape).astype(np.float32) for n, v in base.items()}
    ids, keep = jnp.asarray(tokens(2, 17)), NeuronMask.keep_all(decoder.config)
    x, _ = hidden_states(decoder, ids, keep, changes=changes(index, base, values))
    expected = forward_decoder(scatter(decoder, index, values), ids, keep)
    np.testing.assert_allclose(logits_of(decoder, x), expected, atol=1e-5, rtol=1e-5)
    assert np.abs(expected - forward_decoder(decoder, ids, keep)).max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_scatter_touches_the_selection_alone(family):
    decoder = pair(family, 2).decoder
    neurons = random_set(decoder.config)
    index = index_of(neurons, widths([neurons, random_set(decoder.config, 0.5)]))
    assert_same(scatter(decoder, index, gather(decoder, index)), decoder)
    selection = parameter_arrays(selection_in(decoder, index))
    before, after = (
        parameter_arrays(decoder),
        parameter_arrays(scatter(decoder, index, {n: v + 1 for n, v in gather(decoder, index).items()})),
    )
    for name in before:
        np.testing.assert_array_equal(np.asarray(before[name] != after[name]), np.asarray(selection[name]))
    hidden, counts = decoder.config.hidden_size, {g: m.sum() for g, m in neurons.groups.items()}
    assert selection["layers.down"].sum() == counts["ffn_down"] * hidden
    assert selection["layers.gate"].sum() == selection["layers.up"].sum() == counts["ffn_up"] * hidden


def assert_same(a, b):
    for name, array in parameter_arrays(a).items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(parameter_arrays(b)[name]), err_msg=name)


@pytest.mark.parametrize("block", [1, 40, 97, 1024])  # of 97: single, with a rest, all, more than there are
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_loss_and_its_gradient_equal_the_whole_softmax(family, block):
    decoder = pair(family, 2).decoder
    config, rng = decoder.config, np.random.default_rng(0)
    x, table = rng.normal(size=(24, 32)).astype(np.float32), decoder.embed[...]
    targets, counts = rng.integers(0, 97, 24), (rng.random(24) < 0.7).astype(np.float32)

    def obvious(x):
        logits = x @ table.T
        if config.final_softcap:
            logits = config.final_softcap * jnp.tanh(logits / config.final_softcap)
        return -(jax.nn.log_softmax(logits)[jnp.arange(24), targets] * counts).sum()

    def chunked(x):
        return 3 * summed_nats(config, block, x, table, targets, counts)

    np.testing.assert_allclose(chunked(x), 3 * obvious(x), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(chunked)(x), 3 * jax.grad(obvious)(x), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_packed_document_has_the_loss_that_it_has_alone(family):
    model = pair(family, 2).model
    texts = documents()
    rows = pack([Encoded(d, 0) for d in texts], 24)
    assert len(rows.tokens) < len(texts) / 1.3, "several documents share a row"
    neurons = random_set(model.config)
    frozen, state = begin_runs(model.decoder, *stacked(neurons))
    one = type(rows)(*(x[None] for x in rows))
    packed = validation_nats(Program(False, 1), frozen, state.values, one)
    alone = mw.held_out_loss(model, texts, NeuronMask.keep_all(model.config))
    np.testing.assert_allclose(packed[0], alone.nats.sum(), rtol=1e-6)


def stacked(neurons, **rates):
    values = {"learning_rate": 1e-2, "steps": 30, "warmup": 0.1, "weight_decay": 0.1, "clip": 0.3, **rates}
    one = index_of(neurons, widths([neurons])), Rates(**{k: jnp.float32(v) for k, v in values.items()})
    return jax.tree.map(lambda x: jnp.asarray(x)[None], one)


def test_every_document_is_packed_whole_and_once():
    texts = documents(40)
    rows = pack([Encoded(d, 0) for d in texts], 20)
    found = []
    for tokens_, start, counts in zip(rows.tokens, rows.start, rows.counts, strict=True):
        for begin in np.unique(start):
            inside = np.flatnonzero((start == begin) & (counts > 0))
            if inside.size:
                found.append(tuple(tokens_[begin : inside[-1] + 2]))
    assert sorted(found) == sorted(tuple(d) for d in texts)


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own():
    rows = pack([Encoded(d, 0) for d in documents(40)], 20)
    steps = steps_per_epoch(rows, 4)
    epochs = [[batch_at(rows, 4, 7, e * steps + i) for i in range(steps)] for e in range(2)]
    for batches in epochs:
        seen = np.concatenate([b.tokens[b.counts.sum(1) > 0] for b in batches])
        assert sorted(map(tuple, seen)) == sorted(map(tuple, rows.tokens))
    assert not np.array_equal(epochs[0][0].tokens, epochs[1][0].tokens)
    np.testing.assert_array_equal(batch_at(rows, 4, 7, 3).tokens, epochs[0][3].tokens)


def test_the_rate_rises_and_falls():
    rates = Rates(2.0, 20, 0.2, 0.0, 1.0)
    found = np.asarray([rate_at(rates, jnp.int32(i)) for i in range(20)])
    np.testing.assert_allclose(found[:4], [0.5, 1.0, 1.5, 2.0])
    assert (np.diff(found[3:]) < 0).all()
    assert 0 < found[-1] < 0.05, "every step has an effect"
    assert rate_at(rates, jnp.int32(20)) == 0
    assert [float(rate_at(Rates(1.0, 2, 0.05, 0.0, 1.0), jnp.int32(i))) for i in range(2)] == pytest.approx([1.0, 0.5])


def test_compact_training_equals_the_masked_whole_step_by_step(model):
    """Both with clipping, decay, momentum and schedule: the reference has full gradients and full optimizer state."""
    neurons, rows = random_set(model.config), pack([Encoded(d, 0) for d in documents()], 24)
    index, rates = stacked(neurons)
    frozen, state = begin_runs(model.decoder, index, rates)
    one_index, one_rates = jax.tree.map(lambda x: x[0], (index, rates))
    optimizer = selected_only(adamw(one_rates), selection_in(model.decoder, one_index))
    decoder, keep = jax.tree.map(jnp.copy, model.decoder), NeuronMask.keep_all(model.config)

    @jax.jit
    def reference(decoder, memory, rows):
        def loss(decoder):
            x, _ = hidden_states(
                decoder, rows.tokens, keep, positions=np.arange(24)[None] - rows.start, documents=rows.start
            )
            nats = -jax.nn.log_softmax(logits_of(decoder, x))
            nats = jnp.take_along_axis(nats, rows.targets[..., None], 2)[..., 0]
            return (nats * rows.counts).sum() / rows.counts.sum()

        value, gradient = jax.value_and_grad(loss)(decoder)
        updates, memory = optimizer.update(gradient, memory, decoder)
        return optax.apply_updates(decoder, updates), memory, value

    memory = optimizer.init(decoder)
    for step in range(12):
        batch = batch_at(rows, 4, 0, step)
        state, report = train_step(Program(False, 3), frozen, state, type(rows)(*(x[None, None] for x in batch)))
        decoder, memory, expected = reference(decoder, memory, batch)
        np.testing.assert_allclose(report.loss[0], expected, rtol=2e-6, err_msg=f"step {step}")
    theirs = gather(decoder, one_index)
    for name, values in state.values.items():
        np.testing.assert_allclose(values[0], theirs[name], atol=2e-5, err_msg=name)
    moved = max(float(np.abs(state.values[n][0] - frozen.base[n][0]).max()) for n in theirs)
    assert moved > 0.03


def test_tuning_helps_and_leaves_the_rest_bit_identical(model):
    neurons, texts = random_set(model.config), documents()
    settings = replace(SETTINGS, epochs=34, steps=100, validate_every=50)
    tuned = fine_tune(model, neurons, texts, settings)
    assert len(tuned.history.train) == 100
    keep = NeuronMask.keep_all(model.config)
    before, after = (mw.held_out_loss(m, texts, keep).per_token for m in (model, tuned))
    assert after < before - 0.5
    selection = parameter_arrays(selection_in(model.decoder, tuned.result.index))
    changed = 0
    for name, array in parameter_arrays(tuned.decoder).items():
        differs = np.asarray(array != parameter_arrays(model.decoder)[name])
        assert not differs[~np.asarray(selection[name])].any(), name
        changed += differs.sum()
    assert changed > 0.9 * sum(int(s.sum()) for s in selection.values())
    np.testing.assert_array_equal(mw.forward(tuned, tokens(1, 9), keep), mw.forward(tuned.plain, tokens(1, 9), keep))


def test_many_runs_in_one_program_equal_each_on_its_own(model):
    """Other languages, seeds, random controls, learning rates and numbers of documents."""
    own = random_set(model.config)
    runs = [
        TuningRun(own, documents(), "own", 0),
        TuningRun(own.random_like(1), documents(), "random", 1),
        TuningRun(random_set(model.config, 0.3, 5), documents(12, 9), "other", 0, 3e-3),
        TuningRun(own, documents(), "loud", 0, 1e30),
    ]
    *together, loud = fine_tune_many(model, runs, SETTINGS)
    assert loud.history.diverged
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(loud.values))
    assert np.isfinite(loud.history.train).all()
    assert len(loud.history.train) < 3
    assert not any(result.history.diverged for result in together)
    assert len(together[2].history.train) < len(together[0].history.train)
    compiled = train_step._cache_size()
    for run, found in zip(runs[:-1], together, strict=True):
        (alone,) = fine_tune_many(model, [run], SETTINGS)
        np.testing.assert_allclose(found.history.train, alone.history.train, rtol=1e-5)
        np.testing.assert_allclose(found.history.best, alone.history.best, rtol=1e-5)
        np.testing.assert_allclose(found.history.validation[-1], alone.history.validation[-1], rtol=1e-5)
        a, b = (parameter_arrays(o.merged(model).decoder) for o in (found, alone))
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=1e-4, err_msg=name)
    assert train_step._cache_size() <= compiled + 2, "sets of one width share a program"


def test_few_documents_fill_no_more_rows_than_they_need(model, monkeypatch):
    """Empty rows change nothing: the same with a batch of 16, most of it empty."""
    neurons, few = random_set(model.config), documents(4)
    settings = replace(SETTINGS, batch=16)
    shapes = []

    def seen(program, frozen, state, rows):
        shapes.append(rows.tokens.shape)
        return train_step(program, frozen, state, rows)

    monkeypatch.setattr(tune, "train_step", seen)
    small = fine_tune(model, neurons, few, settings)
    monkeypatch.setattr(tune._Work, "_fitting", lambda self, batch, rows: batch)
    whole = fine_tune(model, neurons, few, settings)
    assert {shape[2] for shape in shapes[: len(shapes) // 2]} < {1, 2, 3}
    assert shapes[-1][2] == 16
    np.testing.assert_allclose(small.history.train, whole.history.train, rtol=1e-5)
    np.testing.assert_allclose(small.history.validation, whole.history.validation, rtol=1e-5)


def test_parts_of_a_batch_add_up(model):
    neurons = random_set(model.config)
    whole = fine_tune(model, neurons, documents(), replace(SETTINGS, steps=4))
    parts = fine_tune(model, neurons, documents(), replace(SETTINGS, steps=4, accumulate=2))
    np.testing.assert_allclose(whole.history.train, parts.history.train, rtol=1e-5)


def test_the_best_step_is_kept_and_training_stops(model):
    """Documents of random tokens: what is learned about some does not help with others."""
    texts = [tokens(1, 12, seed=i)[0] for i in range(30)]
    settings = TuneSettings(
        learning_rate=3e-2, epochs=40, batch=4, max_tokens=24, validate_every=2, patience=2, clip=10.0
    )
    tuned = fine_tune(model, random_set(model.config, 0.5), texts, settings)
    losses = [loss for _, loss in tuned.history.validation]
    assert len(tuned.history.train) < 60
    assert losses[-1] > min(losses) == tuned.history.best[1]
    assert all(loss > min(losses) for loss in losses[-2:])


def test_a_run_that_stops_early_beside_a_longer_one_says_what_it_made(model):
    noise = [tokens(1, 12, seed=i)[0] for i in range(30)]  # nothing to learn from
    settings = TuneSettings(
        learning_rate=3e-2, epochs=6, batch=4, max_tokens=24, validate_every=1, patience=2, clip=10.0
    )
    neurons = random_set(model.config, 0.5)
    runs = [TuningRun(neurons, noise, "noise"), TuningRun(neurons, documents(), "learns", learning_rate=3e-3)]
    short, long = (o.history for o in fine_tune_many(model, runs, settings))
    alone = fine_tune(model, neurons, noise, settings).history
    assert len(short.train) == len(alone.train) < len(long.train)
    assert [step for step, _ in short.validation] == [step for step, _ in alone.validation]
    np.testing.assert_allclose(short.validation, alone.validation, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "low", "high"), [("float32", 1 - 1e-5, 1 + 1e-5), ("bfloat16", 0.5, 0.999)])
def test_how_much_of_a_change_rounding_leaves(model, dtype, low, high):
    """Against the weights of the merged model themselves."""
    arrays = {n: a.astype(dtype) if a.ndim > 1 else a for n, a in parameter_arrays(model.decoder).items()}
    rounded = mw.Model(type(model.decoder)(model.config, arrays), None, "rounded")
    result = fine_tune(rounded, random_set(model.config), documents(), replace(SETTINGS, learning_rate=1e-4)).result
    base, merged = (gather(d, result.index) for d in (rounded.decoder, result.merged(rounded).decoder))
    wanted, left = (np.concatenate([np.ravel(t[n] - base[n]) for n in base]) for t in (result.values, merged))
    assert low < result.kept(rounded) < high
    assert result.kept(rounded) == pytest.approx(wanted @ left / (wanted @ wanted), rel=1e-4)


class Stop(Exception):
    pass


def stop_after(step):
    def progress(made, of):
        if made == step:
            raise Stop

    return progress


def test_going_on_gives_the_same_losses_to_the_bit(model, tuned, tmp_path):
    neurons = random_set(model.config)
    with pytest.raises(Stop):
        fine_tune(model, neurons, documents(), SETTINGS, checkpoints=tmp_path, progress=stop_after(6))
    seen = []
    again = fine_tune(
        model, neurons, documents(), SETTINGS, checkpoints=tmp_path, progress=lambda made, of: seen.append(made)
    )
    assert seen[0] == 5, "the checkpoint is of step 4"
    assert again.history == tuned.history
    assert_same(again.decoder, tuned.decoder)
    size = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert size < 5 * sum(a.nbytes for a in parameter_arrays(model.decoder).values())
    finished = fine_tune(model, neurons, documents(), SETTINGS, checkpoints=tmp_path, progress=stop_after(1))
    assert finished.history == tuned.history, "nothing is left to do"
    other = random_set(model.config, seed=3)
    with pytest.raises(mw.InputError, match=r"another neuron set or corpus \(neurons: "):
        fine_tune(model, other, documents(), SETTINGS, checkpoints=tmp_path)
    moved = mw.Model(scatter(model.decoder, again.result.index, again.result.values), None, "moved")
    with pytest.raises(mw.InputError, match=r"another base model \(weights: "):
        fine_tune(moved, neurons, documents(), SETTINGS, checkpoints=tmp_path)


@pytest.mark.processes
@pytest.mark.slow
def test_killed_it_goes_on(tmp_path, model, tuned):
    """kill -9 in the middle, with a checkpoint perhaps half written."""
    script = (
        "import os, signal, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), str(ROOT / 'tests')]!r}\n"
        "from test_tune import *\n"
        "kill = lambda made, of: made == 9 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "model = pair('llama', 2).model\n"
        "neurons = random_set(model.config)\n"
        f"fine_tune(model, neurons, documents(), SETTINGS, checkpoints={str(tmp_path)!r}, progress=kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr[-2000:]
    seen = []
    again = fine_tune(
        model, random_set(model.config), documents(), SETTINGS, checkpoints=tmp_path,
        progress=lambda made, of: seen.append(made),
    )  # fmt: skip
    assert seen[0] in (5, 9)
    assert again.history == tuned.history


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(model, tmp_path):
    wild = replace(SETTINGS, learning_rate=1e30, validate_every=1, warmup=0.0)
    with pytest.raises(mw.InputError, match=r"not finite after step .* at learning rate 1e\+30.*lower learning rate"):
        fine_tune(model, random_set(model.config), documents(), wild, checkpoints=tmp_path)


def test_after_a_loss_that_is_not_finite_the_last_good_checkpoint_goes_on(model, tuned, tmp_path, monkeypatch):
    tune, made = sys.modules["mwork_jax.enhance.tune"], []
    real = tune.train_step

    def overflowing(program, frozen, state, batch):
        made.append(1)
        if len(made) == 7:
            state = state._replace(values=jax.tree.map(lambda x: x * jnp.nan, state.values))
        return real(program, frozen, state, batch)

    monkeypatch.setattr(tune, "train_step", overflowing)
    with pytest.raises(mw.InputError, match=r"not finite after step 7 .*the last good checkpoint is kept in"):
        fine_tune(model, random_set(model.config), documents(), SETTINGS, checkpoints=tmp_path)
    monkeypatch.undo()
    seen = []
    again = fine_tune(
        model, random_set(model.config), documents(), SETTINGS, checkpoints=tmp_path,
        progress=lambda made, of: seen.append(made),
    )  # fmt: skip
    assert seen[0] == 5, "the checkpoint is of step 4"
    assert again.history == tuned.history
    assert_same(again.decoder, tuned.decoder)


def test_bad_input(model):
    neurons = random_set(model.config)
    wrong = NeuronSet({g: m[:, :-1] for g, m in neurons.groups.items()})
    for message, call in {
        "the neuron set is empty": lambda: fine_tune(model, neurons - neurons, documents()),
        "another model": lambda: fine_tune(model, wrong, documents()),
        "at least 2 are needed": lambda: fine_tune(model, neurons, documents(1)),
        "500 steps asked, but 22 training documents make 4 batches, 16 in 4 epochs": lambda: fine_tune(
            model, neurons, documents(), TuneSettings(epochs=4, steps=500, batch=4, max_tokens=24)
        ),
        "does not split": lambda: TuneSettings(batch=4, accumulate=3),
        "seed is -1": lambda: TuneSettings(seed=-1),
        "epochs is 0": lambda: TuneSettings(epochs=0),
        "learning_rate is nan": lambda: TuneSettings(learning_rate=float("nan")),
        "validation is 0.9": lambda: TuneSettings(validation=0.9),
        "no runs": lambda: fine_tune_many(model, []),
    }.items():
        with pytest.raises(mw.InputError, match=message):
            call()
