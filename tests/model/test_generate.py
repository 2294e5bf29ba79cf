"""Generation: greedy, HF `generate` token for token and a full forward pass at every step; one program for any mask."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mwork_jax as mw
import mwork_jax.model.decode_queue as queue
from mwork_jax.errors import InputError
from mwork_jax.model.decode_slots import decode_slots
from mwork_jax.model.decoder import embedded, forward_decoder, hidden_states, logits_of
from mwork_jax.model.generate import decode_tokens
from mwork_jax.model.kv_cache import KeyValueCache, extend
from mwork_jax.model.sampling import Sampling, likeliest, nucleus
from mwork_jax.model.sampling import drawn as draw_tokens
from mwork_jax.model.slots import advance_blocks
from mwork_jax.neurons import NeuronMask
from support.slow_deactivation import random_neurons, zero_neurons
from support.tiny import POSITIONS, decoder_of, hf_model, pair, tokens, torch

FAMILIES = [
    "llama", "mistral", "qwen3", "gemma2", "gemma3", "cohere", "cohere2", "smollm3", "olmo3", "phi3-partial",
    "ministral3", "apertus", "bloom", "granite",
]  # fmt: skip
LENGTHS = (3, 16, 9, 23, 1)
NEW = 18


def prompts(lengths=LENGTHS):
    return [tokens(1, n, seed=n)[0] for n in lengths]


def padded(rows):
    """Rows padded on the left, and where each begins."""
    longest = max(map(len, rows))
    start = np.asarray([longest - len(row) for row in rows], np.int32)
    return np.stack([np.pad(row, (s, 0)) for row, s in zip(rows, start, strict=True)]), start


def padded_right(rows):
    """Rows padded on the right, and their lengths."""
    longest = max(map(len, rows))
    return np.stack([np.pad(r, (0, longest - len(r))) for r in rows]), np.asarray([len(r) for r in rows], np.int32)


def hf_generate(hf, rows, new=NEW):
    """What HF generates for a left-padded batch, each row up to and with its EOS."""
    ids, start = padded(rows)
    attends = torch.tensor(np.arange(ids.shape[1])[None] >= start[:, None], dtype=torch.long)
    ids = torch.tensor(ids, dtype=torch.long)
    with torch.no_grad():
        out = hf.generate(ids, attention_mask=attends, do_sample=False, max_new_tokens=new, pad_token_id=0)
    return [trimmed(row, hf.config.eos_token_id) for row in out[:, ids.shape[1] :].numpy()]


def trimmed(row, eos):
    ends = np.flatnonzero(row == eos)
    return row[: ends[0] + 1] if ends.size else row


def full_forward(decoder, prompt, mask, new=NEW):
    """The slow, obvious greedy decoding: the whole forward pass for every token. Padding on the right changes
    nothing."""
    ids = np.zeros((1, 48), np.int32)
    ids[0, : len(prompt)] = prompt
    for time in range(len(prompt), len(prompt) + new):
        ids[0, time] = np.argmax(forward_decoder(decoder, ids, mask)[0, time - 1])
    return trimmed(ids[0, len(prompt) : len(prompt) + new], decoder.config.eos_ids[0])


def assert_rows_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("family", "masked"), [("llama", False), ("gemma3", False), *((family, True) for family in FAMILIES)]
)
def test_tokens_equal_hf_and_the_full_forward_pass(family, masked):
    both = pair(family, 2)
    mask, hf = NeuronMask.keep_all(both.config), both.hf
    if masked:
        neurons = random_neurons(both.config)
        mask, hf = mask.drop(neurons), zero_neurons(hf, neurons, both.config)
    ours = mw.generate(both.model, prompts(), mask, max_new_tokens=NEW)
    assert_rows_equal(ours, hf_generate(hf, prompts()))
    assert_rows_equal(ours, [full_forward(both.decoder, prompt, mask) for prompt in prompts()])
    assert len(np.unique(np.concatenate(ours))) > 5, "a model that repeats one token would prove little"


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_heads_that_share_keys_in_every_way(kv_heads):
    both = pair("gemma3", kv_heads)
    ours = mw.generate(both.model, prompts(), NeuronMask.keep_all(both.config), max_new_tokens=NEW)
    assert_rows_equal(ours, hf_generate(both.hf, prompts()))


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_batch_is_one_at_a_time_and_keeps_its_order(family):
    both = pair(family, 2)
    mask = NeuronMask.keep_all(both.config)
    done = []
    together = mw.generate(both.model, prompts(), mask, max_new_tokens=NEW)
    alone = mw.generate(both.model, prompts(), mask, max_new_tokens=NEW, tokens_per_batch=1, progress=done.append)
    assert_rows_equal(together, alone)
    assert done == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("now", [7, jnp.int32(7)], ids=["static", "traced"])
@pytest.mark.parametrize("family", POSITIONS)
def test_extending_a_cache_is_the_forward_pass(family, now):
    both = pair(family, 2)
    ids, start = padded(prompts((17, 11)))
    mask = NeuronMask.keep_all(both.config).drop(random_neurons(both.config))
    positions = np.maximum(np.arange(20)[None] - start[:, None], -1).astype(np.int32)
    whole, _ = hidden_states(both.decoder, jnp.asarray(ids), mask, positions=positions[:, :17])
    x = embedded(both.decoder, ids)
    cache = KeyValueCache.empty(both.decoder, 2, 20)
    _, cache = extend(both.decoder, cache, x[:, :7], mask, positions=positions, now=0)
    x, _ = extend(both.decoder, cache, x[:, 7:], mask, positions=positions, now=now)
    for row, begin in enumerate(start):
        np.testing.assert_allclose(x[row, max(0, begin - 7) :], whole[row, max(7, begin) :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", POSITIONS)
def test_layers_can_be_run_in_parts_by_one_program(family):
    both = pair(family, 2)
    ids, layers = jnp.asarray(tokens(2, 12)), both.config.num_layers
    mask = NeuronMask.keep_all(both.config).drop(random_neurons(both.config))
    whole, _ = hidden_states(both.decoder, ids, mask)
    positions = np.arange(12, dtype=np.int32)[None]

    @jax.jit
    def part(x, cache, first, last):
        return extend(both.decoder, cache, x, mask, positions=positions, now=0, first=first, last=last)

    for stop in range(layers + 1):
        x, cache = part(embedded(both.decoder, ids), KeyValueCache.empty(both.decoder, 2, 12), 0, stop)
        x, _ = part(x, cache, stop, layers)
        np.testing.assert_allclose(x, whole, atol=1e-5, rtol=0)
    assert part._cache_size() == 1


def test_bfloat16_decoding_follows_the_full_forward_pass():
    """The chosen token's logit is the full pass's maximum, up to the order of bfloat16's sums."""
    both = pair("qwen3", 2)
    decoder = mw.Decoder.random(both.config, jax.random.key(0), jnp.bfloat16)
    mask = NeuronMask.keep_all(both.config)
    ids, lengths = padded_right(prompts((9,)))
    decoded = decode_tokens(decoder, ids, lengths, mask, np.int32(NEW), room=20)
    whole = np.concatenate([ids, decoded.tokens[:, :NEW]], axis=1)
    length = ids.shape[1] + int(decoded.lengths[0])
    logits = np.asarray(forward_decoder(decoder, whole, mask))[0, ids.shape[1] - 1 : length - 1]
    chosen = logits[np.arange(len(logits)), whole[0, ids.shape[1] : length]]
    assert (logits.max(axis=-1) - chosen).max() < 0.05


def model_that_ends(rows, least):
    """A Llama whose EOS is the first new token after `least` of the first prompt that is not among those before it, in
    HF and here."""
    both = pair("llama", 2)
    row, *_ = mw.generate(both.model, rows, NeuronMask.keep_all(both.config), max_new_tokens=NEW)
    eos = next(int(token) for at, token in enumerate(row) if at >= least and token not in row[:at])
    hf = hf_model("llama", 2, eos_token_id=eos)
    hf.generation_config.eos_token_id = eos
    return hf, decoder_of(hf)


def test_eos_ends_a_row_and_the_loop():
    rows = prompts((9, 16))
    hf, decoder = model_that_ends(rows, 3)
    mask = NeuronMask.keep_all(decoder.config)
    ours = mw.generate(mw.Model(decoder, None, "tiny"), rows, mask, max_new_tokens=NEW)
    assert_rows_equal(ours, hf_generate(hf, rows))
    assert 3 < ours[0].size < NEW
    assert ours[0][-1] == decoder.config.eos_ids[0]
    alone, lengths = padded_right(rows[:1])
    decoded = decode_tokens(decoder, alone, lengths, mask, np.int32(NEW), room=20)
    assert int(decoded.steps) == ours[0].size
    assert not np.asarray(decoded.tokens[:, ours[0].size :]).any()
    ids, lengths = padded_right(rows)
    decoded = decode_tokens(decoder, ids, lengths, mask, np.int32(NEW), room=20)
    assert int(decoded.steps) == max(row.size for row in ours)
    np.testing.assert_array_equal(decoded.lengths, [row.size for row in ours])


def test_stop_strings_cut_the_text_and_end_the_loop(tiny_folder, monkeypatch):
    model = mw.load_model(tiny_folder, dtype="float32")
    mask = NeuronMask.keep_all(model.config)
    options = {"mask": mask, "max_new_tokens": 40}
    calls = []

    def counted(*given):
        *results, steps = decode_slots(*given)
        calls.append(int(steps))
        return *results, steps

    monkeypatch.setattr(queue, "decode_slots", counted)
    texts = ["a prompt", "another"]
    free = mw.generate(model, texts, **options)
    assert calls == [40]
    assert all(isinstance(text, str) and len(text) > 8 for text in free)
    stop = [free[0][5:8], free[1][6:9]]
    calls.clear()
    stopped = mw.generate(model, texts, stop=stop, **options)
    assert stopped == [text[: min(text.find(s) % 1000 for s in stop)] for text in free]
    assert len(calls) == 1
    assert calls[0] < 16, "a stop string is seen at the token that completes it"
    calls.clear()
    assert mw.generate(model, texts, stop=["no such text"], **options) == free
    assert calls == [40]
    calls.clear()
    assert (
        mw.generate(model, texts, stop=["no such text, as it is longer than what the table holds"], **options) == free
    )
    assert calls == [16, 16, 8]
    (array,) = mw.generate(model, [model.encode(texts[0])], **options)
    assert array == free[0]


def test_texts_keep_the_space_that_a_tokenizer_drops():
    class Spaced:
        """Decodes as SentencePiece tokenizers do: every token is a word, the first without its space."""

        def decode(self, ids, skip_special_tokens):
            assert skip_special_tokens
            return " ".join(f"w{i}" for i in ids)

    both = pair("llama", 2)
    model = mw.Model(both.decoder, Spaced(), "tiny")
    mask = NeuronMask.keep_all(both.config)
    (bare,) = mw.generate(both.model, prompts((9,)), mask, max_new_tokens=3)
    assert mw.generate(model, prompts((9,)), mask, max_new_tokens=3) == ["".join(f" w{i}" for i in bare)]


def test_vmap_over_masks_is_a_loop():
    both = pair("gemma3", 2)
    ids, lengths = padded_right(prompts())
    masks = [NeuronMask.keep_all(both.config).drop(random_neurons(both.config, seed=s)) for s in range(3)]
    decode = partial(decode_tokens, both.decoder, ids, lengths, max_new_tokens=np.int32(NEW), room=20)
    many = jax.vmap(lambda mask: decode(mask=mask))
    together = many(NeuronMask.stack(masks))
    alone = [decode(mask=mask) for mask in masks]
    np.testing.assert_array_equal(together.tokens, np.stack([d.tokens for d in alone]))
    np.testing.assert_array_equal(together.lengths, np.stack([d.lengths for d in alone]))
    assert len({d.tokens.tobytes() for d in map(jax.device_get, alone)}) == 3, "the masks must matter"
    # The cache is updated in place for all masks at once: no scatter, and no choice between old and new caches.
    program = jax.jit(many).lower(NeuronMask.stack(masks)).compile().as_text() or ""
    assert "dynamic-update-slice(" in program
    assert "scatter(" not in program
    cache = rf"f32\[3,{both.config.num_layers},5,{ids.shape[1] + 20},\S+ select"
    assert not re.search(cache, program)
    twice = jax.vmap(many)(NeuronMask.stack([NeuronMask.stack(masks)] * 2))
    np.testing.assert_array_equal(twice.tokens, np.stack([together.tokens] * 2))


def test_vmapped_masks_go_on_until_the_last_is_done():
    rows = prompts((9,))
    _, decoder = model_that_ends(rows, 3)
    ids, lengths = padded_right(rows)
    keep = NeuronMask.keep_all(decoder.config)
    masks = [keep, *(keep.drop(random_neurons(decoder.config, seed=s)) for s in range(2))]
    alone = [decode_tokens(decoder, ids, lengths, mask, np.int32(NEW), room=20) for mask in masks]
    assert len({int(d.steps) for d in alone}) > 1
    together = jax.vmap(lambda m: decode_tokens(decoder, ids, lengths, m, np.int32(NEW), 20))(NeuronMask.stack(masks))
    np.testing.assert_array_equal(together.tokens, np.stack([d.tokens for d in alone]))
    np.testing.assert_array_equal(together.lengths, np.stack([d.lengths for d in alone]))


@pytest.mark.parametrize("vocabulary", [1, 97, 128, 300, 1024])
def test_the_likeliest_token_is_the_first_of_the_highest_logit(vocabulary):
    lowest = np.repeat([-40, -2000], 32)[:, None]  # rows with the highest in nearly every tile, and in few
    logits = np.random.default_rng(0).integers(lowest, -20, (64, vocabulary)).astype(np.float32)
    logits[0] = -np.inf
    np.testing.assert_array_equal(likeliest(jnp.asarray(logits)), logits.argmax(axis=1))


def test_any_mask_and_any_number_of_new_tokens_is_one_program():
    both = pair("llama", 2)
    for program in (advance_blocks, decode_slots):
        program.clear_cache()
    for seed in range(20):
        mask = NeuronMask.keep_all(both.config).drop(random_neurons(both.config, seed=seed))
        mw.generate(both.model, prompts((13 + seed % 4, 5)), mask, max_new_tokens=17 + seed % 4)
    assert advance_blocks._cache_size() == 1
    assert decode_slots._cache_size() == 1


def sampled(both, mask, temperature=0.8, top_p=0.7, seed=0, **options):
    rates = {"temperature": temperature, "top_p": top_p, "key": jax.random.key(seed)}
    return mw.generate(both.model, prompts((13, 5, 9)), mask, max_new_tokens=17, **rates, **options)


def test_any_temperature_top_p_and_key_is_one_more_program():
    both = pair("llama", 2)
    mask = NeuronMask.keep_all(both.config).drop(random_neurons(both.config, seed=0))
    greedy = mw.generate(both.model, prompts((13, 5, 9)), mask, max_new_tokens=17)
    programs = decode_slots._cache_size()
    assert_rows_equal(sampled(both, mask, temperature=0), greedy)
    assert decode_slots._cache_size() == programs, "greedy is the program that it was"
    drawn = [sampled(both, mask, t, p, seed) for t, p, seed in ((0.8, 0.7, 0), (2.0, 1.0, 0), (2.0, 1.0, 1))]
    assert decode_slots._cache_size() == programs + 1
    texts = {tuple(map(tuple, rows)) for rows in (greedy, *drawn)}
    assert len(texts) == 4
    assert_rows_equal(sampled(both, mask), drawn[0])
    assert_rows_equal(sampled(both, mask, tokens_per_batch=1), drawn[0])
    assert_rows_equal(sampled(both, mask, top_p=1e-6), greedy)  # the likeliest alone is left


def test_drawn_tokens_follow_the_distribution_of_temperature_and_top_p():
    """By hand: the full forward pass, softmax of logits / temperature, the likeliest tokens up to top_p."""
    both, count, temperature, top_p = pair("llama", 2), 4096, 1.5, 0.6
    mask, ids = NeuronMask.keep_all(both.config), prompts((9,))[0]
    logits = np.asarray(forward_decoder(both.decoder, ids[None], mask)[0, -1], np.float64)
    p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    order = np.argsort(-p)
    kept = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1]
    sampling = Sampling(np.zeros(2, np.uint32), np.arange(count, dtype=np.int32), np.float32(temperature), top_p)
    tiled = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(p)))
    tokens = np.asarray(jax.jit(draw_tokens)(tiled, sampling, jnp.int32(0), jnp.zeros(count, jnp.int32)))
    assert set(tokens) == set(kept)
    shares = np.bincount(tokens, minlength=len(p))[kept] / count
    np.testing.assert_allclose(shares, p[kept] / p[kept].sum(), atol=4 * 0.5 / count**0.5)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.99, 1.0])
def test_the_nucleus_is_the_one_that_sorting_finds(top_p):
    p = np.random.default_rng(0).dirichlet(np.full(300, 0.05), 20).astype(np.float32)
    order = np.argsort(-p, axis=1)
    before = np.cumsum(np.take_along_axis(p.astype(np.float64), order, 1), 1) - np.take_along_axis(p, order, 1)
    expected = np.zeros(p.shape, bool)
    np.put_along_axis(expected, order, before < top_p, 1)
    found = np.asarray(nucleus(jnp.asarray(p), jnp.float32(top_p)))
    different = (found != expected) & (p > 1e-6)  # sums of float32 know no smaller ones
    assert not different.any()
    assert found[np.arange(20), p.argmax(axis=1)].all()


def test_a_mask_draws_the_same_numbers_and_temperatures_can_be_vmapped():
    both = pair("llama", 2)
    ids, lengths = padded_right(prompts((9, 5)))
    mask = NeuronMask.keep_all(both.config)
    sampling = Sampling(np.ones(2, np.uint32), np.arange(2, dtype=np.int32), np.float32(0), np.float32(0.9))

    def decode(temperature, m):
        given = sampling._replace(temperature=temperature)
        return decode_tokens(both.decoder, ids, lengths, m, np.int32(NEW), 20, given).tokens

    rates = jnp.asarray([0.0, 1.2, 1.2])
    together = jax.vmap(decode)(rates, NeuronMask.stack([mask] * 3))
    np.testing.assert_array_equal(
        together[0], decode_tokens(both.decoder, ids, lengths, mask, np.int32(NEW), 20).tokens
    )
    np.testing.assert_array_equal(together[1], together[2])
    assert not np.array_equal(together[0], together[1])


def test_the_last_context_position_is_used():
    both = pair("llama", 2)
    longest = both.config.max_length
    mask = NeuronMask.keep_all(both.config)
    (row,) = mw.generate(both.model, prompts((longest - 4,)), mask, max_new_tokens=4)
    assert_rows_equal([row], hf_generate(both.hf, prompts((longest - 4,)), 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, "prompts: there are none"),
        ({"prompts": "one"}, "come as lists"),
        ({"stop": "one"}, "come as lists"),
        ({"prompts": [tokens(1, 5)[0], np.zeros(0, np.int32)]}, "prompt 2 is empty"),
        ({"prompts": [tokens(1, 5)[0], tokens(1, 60)[0]]}, "prompt 2 has 60 tokens; with 18 new ones, at most 46 fit"),
        ({"prompts": ["text"]}, "prompt 1: the model has no tokenizer"),
        ({"prompts": [np.asarray([1, 97])]}, "prompt 1: token 97 is outside the vocabulary"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; from 1 to 63"),
        ({"max_new_tokens": 64}, "max_new_tokens is 64; from 1 to 63"),
        ({"stop": ["a", ""]}, "a stop string is empty"),
        ({"stop": [1]}, "stop: strings are needed"),
        ({"stop": None}, "come as lists"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True; a whole number"),
        ({"prompts": {"a": "b"}}, "come as lists"),
        ({"stop": ["a"]}, "no tokenizer to find stop strings with"),
        ({"temperature": -1}, "temperature is -1; one number is needed, 0 or more"),
        ({"temperature": "hot"}, "temperature is 'hot'; one number"),
        ({"temperature": [1, 2]}, r"temperature is \[1, 2\]; one number"),
        ({"temperature": np.nan}, "temperature is nan; one number"),
        ({"temperature": 1.0}, r"temperature is 1, but there is no key to draw with; give jax.random.key\(seed\)"),
        ({"temperature": 1.0, "key": 3}, "key is int; one random key"),
        ({"temperature": 1.0, "key": jax.random.split(jax.random.key(0))}, r"key is .* \[2\]; one random key"),
        ({"top_p": 0}, "top_p is 0; one number is needed, above 0, up to 1"),
    ],
)
def test_what_cannot_be_generated(given, message):
    both = pair("llama", 2)
    given = {"prompts": prompts(), "max_new_tokens": NEW, **given}
    with pytest.raises(InputError, match=message):
        mw.generate(both.model, mask=NeuronMask.keep_all(both.config), **given)


def test_logits_of_the_cached_pass_equal_the_whole_pass():
    both = pair("gemma2", 2)
    ids, mask = jnp.asarray(tokens(2, 12)), NeuronMask.keep_all(both.config)
    cache, x = KeyValueCache.empty(both.decoder, 2, 12), embedded(both.decoder, ids)
    positions = np.arange(12, dtype=np.int32)[None]
    found = []
    for time in range(12):
        y, cache = extend(both.decoder, cache, x[:, time : time + 1], mask, positions=positions, now=jnp.int32(time))
        found.append(logits_of(both.decoder, y[:, 0]))
    np.testing.assert_allclose(np.stack(found, axis=1), forward_decoder(both.decoder, ids, mask), atol=1e-5, rtol=0)
