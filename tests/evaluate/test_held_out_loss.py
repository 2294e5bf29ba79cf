"""Held-out loss against HF PyTorch's own cross-entropy; stages; corpora."""

import numpy as np
import pytest

from mwork_jax.corpus import Batching, Encoded, encoded, list_batches, own_corpus, read_corpus, stream_batches
from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import held_out_loss
from mwork_jax.intervene.stages import EACH_STAGE, EVERYWHERE, StageSetting, StageSplit
from mwork_jax.model import predictions
from mwork_jax.model.buckets import bucket_length
from mwork_jax.neurons import GROUPS, NeuronMask
from support.slow_deactivation import random_neurons, zero_neurons
from support.tiny import pair, torch


def documents(count=7, seed=0):
    rng = np.random.default_rng(seed)
    return [np.concatenate([[1], rng.integers(3, 97, n)]).astype(np.int32) for n in rng.integers(1, 60, count)]


def hf_nats(hf, ids) -> float:
    with torch.no_grad():
        logits = hf(torch.tensor(ids, dtype=torch.long)[None]).logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:], dtype=torch.long), reduction="sum"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_loss_equals_hf_with_and_without_a_mask(family):
    both = pair(family, 2)
    neurons = random_neurons(both.config, share=0.2)
    keep = NeuronMask.keep_all(both.config)
    for mask, hf in ((keep, both.hf), (keep.drop(neurons), zero_neurons(both.hf, neurons, both.config))):
        found = held_out_loss(both.model, documents(), mask, batching=Batching(tokens_per_batch=128))
        expected = [hf_nats(hf, d) for d in documents()]
        np.testing.assert_allclose(found.nats, expected, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(found.tokens, [d.size - 1 for d in documents()])
        assert found.per_token == pytest.approx(sum(expected) / sum(found.tokens), rel=1e-5)
        np.testing.assert_allclose(found.scores, -found.nats / found.tokens)


def test_any_number_of_masks_is_one_program_per_shape():
    both = pair("llama", 2)
    same = [d[:20] for d in documents(4, seed=3) if d.size >= 20]
    predictions.predicted.clear_cache()
    for seed in range(20):
        mask = NeuronMask.keep_all(both.config).drop(random_neurons(both.config, seed=seed))
        held_out_loss(both.model, same, mask)
    assert predictions.predicted._cache_size() == 1


def test_many_positions_go_through_several_chunks(monkeypatch):
    both = pair("llama", 2)
    keep = NeuronMask.keep_all(both.config)
    whole = held_out_loss(both.model, documents(), keep)
    monkeypatch.setattr(predictions, "LOGIT_ROWS", 8)
    predictions.predicted.clear_cache()
    np.testing.assert_allclose(held_out_loss(both.model, documents(), keep).nats, whole.nats, rtol=1e-5)
    predictions.predicted.clear_cache()


def test_bytes_are_counted_for_text_only():
    both = pair("llama", 2)
    keep = NeuronMask.keep_all(both.config)
    assert np.isnan(held_out_loss(both.model, documents(), keep).per_byte)
    known = [Encoded(d, 10) for d in documents()]
    found = held_out_loss(both.model, known, keep)
    assert found.per_byte == pytest.approx(found.nats.sum() / 70)


@pytest.mark.parametrize("batches", [stream_batches, list_batches])
def test_batches_lose_nothing_and_have_few_shapes(batches):
    batching = Batching(max_tokens=50, tokens_per_batch=100)
    ready = list(encoded(pair("llama", 2).model, documents(200), 50))
    seen, shapes = {}, set()
    for batch in batches(ready, batching):
        shapes.add(batch.tokens.shape)
        assert batch.tokens.size <= max(100, batch.tokens.shape[1])
        for row, place in enumerate(batch.documents):
            if place >= 0:
                seen[int(place)] = batch.tokens[row, : batch.lengths[row]]
    assert sorted(seen) == list(range(200))
    assert all(np.array_equal(seen[i], ready[i].tokens) for i in seen)
    assert len(shapes) <= len({bucket_length(n, 50) for n in range(2, 51)}) + (batches is list_batches)


def test_a_stream_ends_in_full_batches():
    ready = [Encoded(np.ones(n, np.int32), 0) for n in [40] * 9 + [30, 20, 10]]
    rows = [(b.tokens.shape[1], (b.documents >= 0).sum()) for b in stream_batches(ready, Batching(64, 160))]
    assert rows == [(40, 4), (40, 4), (40, 4)]


def test_buckets_waste_at_most_a_quarter():
    for length in range(2, 3000):
        bucket = bucket_length(length, 4096)
        assert length <= bucket <= max(16, 1.25 * length)
    assert len({bucket_length(n, 4096) for n in range(2, 4097)}) == 33
    assert bucket_length(500, 400) == 400


SPLIT = StageSplit(3, 1, 1)


def test_stages_partition_the_model():
    neurons = random_neurons(pair("llama", 2).config, share=0.5)
    parts = [setting.choose(neurons, SPLIT) for setting in EACH_STAGE.values()]
    assert sum(p.count() for p in parts) == neurons.count()
    union = parts[0] | parts[1] | parts[2] | parts[3]
    assert union == neurons == EVERYWHERE.choose(neurons, SPLIT)
    assert StageSetting().choose(neurons, SPLIT).count() == 0
    under, s_attn, s_ffn, gen = parts
    for group in GROUPS:
        assert not under.groups[group][1:].any()
        assert not gen.groups[group][:2].any()
        assert s_attn.groups[group][1].any() == group.startswith("attn")
        assert s_ffn.groups[group][1].any() == group.startswith("ffn")


def test_the_default_split_is_the_paper_s():
    assert StageSplit.default(32) == StageSplit(32, 8, 4)
    assert StageSplit.default(18) == StageSplit(18, 4, 2)


@pytest.mark.parametrize("split", [(3, 2, 2), (3, -1, 1)])
def test_splits_that_do_not_fit(split):
    with pytest.raises(InputError, match="do not fit a model of 3 layers"):
        StageSplit(*split)


def test_corpus_files(tmp_path):
    def read(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_corpus(path)

    assert read("lines.txt", "one\n two \nthree\n") == ["one", "two", "three"]
    assert read("blank.txt", "one\nmore\n\n\ntwo\r\n\r\nthree\n") == ["one more", "two", "three"]
    assert read("bom.txt", b"\xef\xbb\xbfone\ntwo") == ["one", "two"]
    assert read("x.jsonl", '{"text": "one"}\n\n{"text": "two", "id": 3}\n') == ["one", "two"]
    for name, text, message in (
        ("empty.txt", "\n  \n", "no documents"),
        ("latin.txt", b"caf\xe9", "not UTF-8 .byte 3."),
        ("bad.jsonl", '{"text": "a"}\n{"txt": "b"}', "bad.jsonl:2: no 'text'"),
        ("cut.jsonl", '{"text": "a"}\n{"text": "b', "cut.jsonl:2: not valid JSON"),
        ("list.jsonl", "[1]", "list.jsonl:1: a JSON object"),
    ):
        with pytest.raises(InputError, match=message):
            read(name, text)
    with pytest.raises(InputError, match="no such file"):
        read_corpus(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_corpus(tmp_path)


def test_own_corpus_is_parallel():
    english, thai = own_corpus("en"), own_corpus("th")
    assert len(english.detection) == len(thai.detection) >= 32 - 16
    assert len(english.held_out) == len(thai.held_out) > 0
    with pytest.raises(InputError, match="'xx' is not in the built-in data"):
        own_corpus("xx")
