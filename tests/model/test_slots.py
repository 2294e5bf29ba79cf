"""Rows in slots: every output is that of the plain forward pass, and no row depends on what runs beside it."""

import jax
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.intervention import Intervention
from mwork_jax.model.admission import Prompt, ordered_pairs
from mwork_jax.model.decode_queue import decoded_pairs
from mwork_jax.model.decode_slots import decode_slots
from mwork_jax.model.decoder import hidden_states
from mwork_jax.model.generate import generations
from mwork_jax.model.predictions import predicted
from mwork_jax.model.slot_runner import SlotRunner, first_layer
from mwork_jax.model.slot_sizes import Room, Sizes, sizes_within, time_for
from mwork_jax.model.slots import BLOCK, advance_blocks
from mwork_jax.neurons import NeuronMask
from support.slow_deactivation import random_neurons
from support.tiny import pair, tokens

LAYERS = 3
forward = jax.jit(lambda decoder, tokens, mask: hidden_states(decoder, tokens, mask)[0])


def masks_of(config, firsts):
    """One random mask for each first layer asked for."""
    keep = NeuronMask.keep_all(config)
    return [
        keep.drop(random_neurons(config, share=0.2, seed=i).in_layers(first, config.num_layers))
        for i, first in enumerate(firsts)
    ]


def alike(groups=2, members=2, prefix=BLOCK + 3, seed=0, most=60):
    """Token arrays with a common prefix, a stem for each group, and a rest of their own."""
    rng = np.random.default_rng(seed)

    def drawn(size):
        return rng.integers(3, 97, size).astype(np.int32)

    start = np.concatenate([[1], drawn(prefix - 1)]).astype(np.int32)
    stems = [drawn(9 + g) for g in range(groups)]
    rests = [drawn(size) for size in rng.integers(2, 12, groups * members)]
    return [np.concatenate([start, stems[i % groups], rest])[:most] for i, rest in enumerate(rests)]


def test_first_layers():
    config = pair("llama", 2).config
    assert config.num_layers == LAYERS
    assert [first_layer(m) for m in masks_of(config, [0, 1, 2])] == [0, 1, 2]
    assert first_layer(NeuronMask.keep_all(config)) == LAYERS


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "bloom", "gpt-oss", "mixtral"])
def test_every_output_is_that_of_the_forward_pass(family):
    both = pair(family, 2)
    rows = alike()
    masks = masks_of(both.config, [2, 0, 1, 0, LAYERS])
    padded = np.stack([np.pad(row, (0, 60 - row.size)) for row in rows])
    whole = [np.asarray(forward(both.decoder, padded, mask)) for mask in masks]
    prompts = [Prompt(row, row.size, BLOCK, row.size) for row in rows]
    pairs = ordered_pairs(prompts, len(masks), 4)
    runner = SlotRunner(both.decoder, prompts, masks, pairs, Sizes(4, 128), any_generated=False, with_outputs=True)
    seen = {pair: np.zeros(rows[pair.prompt].size, int) for pair in pairs}
    while runner.queue:
        seats, runs = runner.admit()
        for run in runs:
            for place, (job, begin) in enumerate(run.blocks[0] if run.is_last else ()):
                end = min(begin + BLOCK, job.end)
                theirs = whole[job.pair.mask][job.pair.prompt, begin:end]
                np.testing.assert_allclose(run.x[0, place, : end - begin], theirs, atol=3e-5, rtol=0)
                seen[job.pair][begin:end] += 1
        runner.admission.leave(seats)
    for counts in seen.values():
        assert counts.max() == 1
        assert counts[BLOCK:].all(), "only what another row may give is left out"


def everything_of(both, masks, rows, new):
    """{(prompt, mask): new tokens} of rows in so many slots at most."""
    found = decoded_pairs(both.model, rows, masks, new, (), 16 * 128 // 8, None)
    return {tuple(pair): tuple(tokens.tolist()) for pair, tokens in found}


@pytest.mark.parametrize("family", ["gemma3", "mixtral"])
def test_a_row_is_the_same_to_the_bit_alone_and_beside_forty_masks(family):
    both = pair(family, 2)
    rows = alike(groups=2, members=2)
    masks = masks_of(both.config, [i % (LAYERS + 1) for i in range(40)])
    together = everything_of(both, masks, [row[:50] for row in rows], 8)
    assert len(together) == 160
    assert len(set(together.values())) > 40, "the masks must matter"
    turned = everything_of(both, masks[::-1], [row[:50] for row in rows[::-1]], 8)
    assert {(3 - p, 39 - m): tokens for (p, m), tokens in turned.items()} == together
    for prompt, mask in ((0, 0), (1, 17), (2, 39), (3, 3)):
        assert everything_of(both, [masks[mask]], [rows[prompt][:50]], 8)[0, 0] == together[prompt, mask]
    losses = mw.evaluate.likelihood.held_out_losses(both.model, rows, masks)
    for mask in (0, 5, 39):
        alone = mw.held_out_loss(both.model, [rows[2]], masks[mask])
        assert alone.nats[0] == losses[mask].nats[2]
    contexts, options = [rows[0][:40], rows[0][:40], rows[1][:40]], [rows[0][40:44], rows[2][40:46], rows[3][40:43]]
    together = mw.evaluate.likelihood.log_likelihoods(both.model, contexts, options, masks)
    for mask in (1, 38):
        alone = mw.log_likelihood(both.model, contexts[1:2], options[1:2], masks[mask])
        assert alone.nats[0] == together[mask].nats[1]


def test_masks_and_interventions_share_a_queue():
    both = pair("llama", 2)
    rows = alike(groups=1, members=3)
    mask = masks_of(both.config, [1])[0]
    edits = [mask, Intervention.from_mask(mask), Intervention.none(both.config).on("generated")]
    ours = generations(both.model, rows, edits, max_new_tokens=4)
    for one, other in zip(ours[0], ours[1], strict=True):
        np.testing.assert_array_equal(one, other)
    original = generations(both.model, rows, [NeuronMask.keep_all(both.config)], max_new_tokens=4)[0]
    for one, other in zip(ours[2], original, strict=True):
        np.testing.assert_array_equal(one, other)


def test_any_masks_at_any_layer_are_one_program():
    both = pair("llama", 2)
    rows = [tokens(1, 11, seed=i)[0] for i in range(4)]
    programs = (advance_blocks, decode_slots, predicted)
    for program in programs:
        program.clear_cache()
    for seed in range(6):
        masks = masks_of(both.config, [(seed + i) % LAYERS for i in range(3)])
        generations(both.model, rows[: 2 + seed % 3], masks, max_new_tokens=2 + seed % 3)
        mw.evaluate.likelihood.held_out_losses(both.model, rows[: 2 + seed % 3], masks)
    # The same blocks for text that is read and for prompts that are answered.
    assert [program._cache_size() for program in programs] == [1, 1, 1]


def test_few_times_need_a_program():
    times = [time_for(length) for length in (1, 128, 129, 256, 257, 384, 385, 500, 513, 769, 1025, 1537, 3000)]
    assert times == [128, 128, 256, 256, 384, 384, 512, 512, 768, 1024, 1536, 2048, 3072]


def test_long_prompts_have_slots_of_their_own():
    most = Room(decoded=4, waiting=12, few=(2,))
    found = list(sizes_within([100, 90, 5000, 70_000, 120, 4000], 4, 1, most, 65536))
    assert found == [([0, 1, 4, 5], Sizes(16, 4096, 4)), ([2], Sizes(4, 6144, 4)), ([3], Sizes(2, 98304, 2))]
    for pairs, rows in ((1, 2), (2, 2), (3, 4), (4, 4)):
        assert [sizes for _, sizes in sizes_within([100], pairs, 1, most, 65536)] == [Sizes(rows, 128, rows)]
    assert [sizes for _, sizes in sizes_within([6000] * 2, 4, 1, most, 65536)] == [Sizes(10, 6144, 2)]
