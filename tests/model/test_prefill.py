"""Many sequences under many masks: every output is that of the plain forward pass, and what is shared is shared."""

from itertools import combinations

import jax
import numpy as np
import pytest

import mwork_jax as mw
import mwork_jax.model.prefill as prefill_module
from mwork_jax.evaluate.likelihood import log_likelihoods
from mwork_jax.model.decoder import hidden_states
from mwork_jax.model.generate import generations
from mwork_jax.model.prefill import PrefillRequest, _groups, _shared_beginning, first_layer, prefill, trees
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


def alike(groups=3, members=4, prefix=40, stem=25, seed=0):
    """Rows with a common prefix, a stem for each group, and a rest of their own."""
    rng = np.random.default_rng(seed)

    def drawn(size):
        return rng.integers(3, 97, size).astype(np.int32)

    start = np.concatenate([[1], drawn(prefix - 1)]).astype(np.int32)
    stems = [drawn(stem + g) for g in range(groups)]
    rests = [drawn(size) for size in rng.integers(2, 9, groups * members)]
    return [
        PrefillRequest(np.concatenate([start, stems[i % groups], rest]), min(2, rest.size))
        for i, rest in enumerate(rests)
    ]


def test_first_layers():
    config = pair("llama", 2).config
    assert config.num_layers == LAYERS
    assert [first_layer(m) for m in masks_of(config, [0, 1, 2])] == [0, 1, 2]
    assert first_layer(NeuronMask.keep_all(config)) == LAYERS


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3"])
def test_every_needed_output_is_that_of_the_forward_pass(family):
    both = pair(family, 2)
    rows = alike(prefix=33, stem=10)
    masks = masks_of(both.config, [2, 0, 1, 0, 3, 0])
    padded = np.stack([np.pad(row.tokens, (0, 60 - row.tokens.size)) for row in rows])
    whole = [np.asarray(forward(both.decoder, padded, mask)) for mask in masks]
    seen = set()
    for run in prefill(both.decoder, rows, masks, tokens_per_batch=700):
        assert len(run.tree.levels) == 3
        for m, mask in enumerate(run.masks):
            for r, place in enumerate(run.tree.indices):
                row, size = rows[place], int(run.tree.lengths[r])
                assert size >= row.needed
                theirs = whole[mask][place, row.tokens.size - size : row.tokens.size]
                np.testing.assert_allclose(run.x[m, r, :size], theirs, atol=2e-5, rtol=0)
                assert (int(mask), int(place)) not in seen
                seen.add((int(mask), int(place)))
    assert len(seen) == len(rows) * len(masks)


def test_what_is_shared_is_run_once():
    rows = alike(groups=3, members=4, prefix=40, stem=25)
    (tree,) = trees(rows, 10_000)
    prefix, stems, rests = tree.levels
    assert prefix.tokens.shape[0] == 1
    assert (prefix.positions >= 0).sum() == 40
    assert stems.tokens.shape[0] == 3
    assert sorted((stems.positions[:, prefix.tokens.shape[1] :] >= 0).sum(axis=1)) == [25, 26, 27]
    assert rests.tokens.shape[0] == 12
    for row, place in enumerate(tree.indices):
        own = np.concatenate(
            [
                level.tokens[r][level.positions[r][-level.tokens.shape[1] :] >= 0]
                for level, r in zip(tree.levels, (0, rests.parents[row], row), strict=True)
            ]
        )
        np.testing.assert_array_equal(own, rows[place].tokens)
        positions = rests.positions[row]
        np.testing.assert_array_equal(positions[positions >= 0], np.arange(rows[place].tokens.size))


def test_sharing_that_does_not_pay_is_left_alone():
    apart = [PrefillRequest(tokens(1, n, seed=n)[0], 1) for n in (5, 9, 30)]
    (tree,) = trees(apart, 10_000)
    assert len(tree.levels) == 1
    short = [PrefillRequest(np.asarray([1, 2, 3, 4, i], np.int32), 1) for i in range(5, 9)]
    (tree,) = trees(short, 10_000)
    assert len(tree.levels) == 1
    (tree,) = trees([alike()[0]], 10_000)
    assert len(tree.levels) == 1


def families_by_trying(rows, prefix):
    """The most tokens that any partition into families saves."""

    def saves(members):
        shared = _shared_beginning([rows[i] for i in members]) - prefix
        longest = max(rows[i].tokens.size for i in members) - prefix
        return (len(members) - 1) * shared if 2 * shared >= longest or len(members) == 1 else -np.inf

    def best(left):
        if not left:
            return 0
        first, others = left[0], left[1:]
        companies = (c for n in range(len(others) + 1) for c in combinations(others, n))
        return max(saves([first, *c]) + best([o for o in others if o not in c]) for c in companies)

    return best(list(range(len(rows))))


@pytest.mark.parametrize("seed", range(20))
def test_no_other_groups_save_more(seed):
    rng = np.random.default_rng(seed)

    def text(length):
        return rng.integers(0, 2, length).tolist()

    passages = [text(rng.integers(1, 20)) for _ in range(2)]
    questions = [passages[i % 2] + text(rng.integers(1, 20)) for i in range(4)]
    rows = [
        PrefillRequest(np.asarray(questions[i] + text(rng.integers(1, 9)), np.int32), 1) for i in rng.integers(0, 4, 7)
    ]
    families = _groups(rows, 0)
    saved = sum((len(members) - 1) * stem for members, stem in families)
    most = families_by_trying(rows, 0)
    assert saved == (most if most >= max(32, 0.25 * sum(row.tokens.size for row in rows)) else 0)
    assert sorted(place for members, _ in families for place in members) == list(range(7))
    for members, stem in families:
        for place in members:
            np.testing.assert_array_equal(rows[place].tokens[:stem], rows[members[0]].tokens[:stem])
            assert rows[place].tokens.size > stem


def test_batches_keep_their_bound_and_lose_nothing():
    rows = [*alike(groups=5, members=3), *alike(seed=1)]
    found = list(trees(rows, 400, room=8))
    assert len(found) > 3
    assert sorted(np.concatenate([tree.indices for tree in found])) == list(range(len(rows)))
    for tree in found:
        rows_at, times = tree.levels[-1].positions.shape
        assert rows_at == 1 or rows_at * (times + 8) <= 400


def test_masks_run_in_chunks_of_few_sizes():
    both = pair("llama", 2)
    firsts = [0] * 13 + [1] * 3 + [2] + [LAYERS]
    runs = prefill(both.decoder, alike()[:2], masks_of(both.config, firsts), tokens_per_batch=1000)
    sizes = [(len(run.masks), first_layer(jax.tree.map(lambda x: x[0], run.stacked))) for run in runs]
    assert sizes == [(8, 0), (4, 0), (1, 0), (2, 1), (1, 1), (1, 2), (1, LAYERS)]


def test_any_masks_at_any_layer_are_one_program():
    both = pair("llama", 2)
    rows = [PrefillRequest(tokens(1, 11, seed=i)[0], 1) for i in range(4)]
    advance = prefill_module.advance
    advance.clear_cache()
    for seed in range(6):
        masks = masks_of(both.config, [(seed + i) % LAYERS for i in range(3)])
        for run in prefill(both.decoder, rows, masks, tokens_per_batch=1000):
            jax.block_until_ready(run.x)
    assert advance._cache_size() == 1


def test_many_masks_give_what_each_gives_alone():
    both = pair("gemma3", 2)
    rows = [row.tokens for row in alike(prefix=33, stem=9)]
    masks = masks_of(both.config, [0, 2, 1, 0, 3])
    together = generations(both.model, rows, masks, max_new_tokens=6)
    for mask, found in zip(masks, together, strict=True):
        alone = mw.generate(both.model, rows, mask, max_new_tokens=6, tokens_per_batch=1)
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_array_equal(one, other)
    assert len({np.concatenate(found).tobytes() for found in together}) == 5, "the masks must matter"


def test_choices_share_their_context():
    both = pair("gemma3", 2)
    first, second = (row.tokens[:50] for row in alike(prefix=33, stem=20)[:2])
    contexts, options = [first, first, second, first], [tokens(1, n, first=None)[0] for n in (2, 4, 3, 3)]
    masks = masks_of(both.config, [0, 2, 3])
    padded = np.stack([np.pad(np.concatenate(p), (0, 4 - len(p[1]))) for p in zip(contexts, options, strict=True)])
    for mask, found in zip(masks, log_likelihoods(both.model, contexts, options, masks), strict=True):
        logs = np.asarray(jax.nn.log_softmax(mw.forward(both.model, padded, mask)))
        for i, option in enumerate(options):
            expected = sum(logs[i, 49 + t, token] for t, token in enumerate(option))
            assert found.nats[i] == pytest.approx(expected, abs=1e-4)
