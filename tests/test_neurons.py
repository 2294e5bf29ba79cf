"""Sets and masks: algebra, matched random controls, files."""

import copy
import json

import jax
import numpy as np
import pytest

from mwork_jax.errors import InputError
from mwork_jax.families import config_from_hf
from mwork_jax.neurons import (
    ATTENTION_GROUPS,
    FFN_GROUPS,
    GROUPS,
    NeuronMask,
    NeuronSet,
    check_language,
    files_of_languages,
    group_widths,
)

CONFIG = config_from_hf(
    {
        "model_type": "llama",
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
)


def some(seed=0, share=0.3, **provenance) -> NeuronSet:
    rng = np.random.default_rng(seed)
    groups = {g: rng.random((CONFIG.num_layers, w)) < share for g, w in group_widths(CONFIG).items()}
    groups["ffn_down"] = groups["ffn_up"].copy()
    return NeuronSet(groups, provenance)


def test_groups_are_counted_at_native_width():
    assert list(group_widths(CONFIG)) == list(GROUPS)
    assert group_widths(CONFIG) == {"attn_q": 16, "attn_k": 8, "attn_v": 8, "ffn_up": 24, "ffn_down": 24}


def test_algebra():
    a, b = some(1), some(2)
    assert (a & b).count() + (a - b).count() == a.count()
    assert (a | b).count() == a.count() + b.count() - (a & b).count()
    assert (a - a).count() == 0
    assert (a | NeuronSet.empty(CONFIG)) == a
    assert a != b
    assert a.total() == 4 * (16 + 8 + 8 + 24 + 24)
    assert sum(c.sum() for c in a.counts().values()) == a.count() == len(a)


def test_layers_and_groups_partition_the_set():
    a = some()
    assert a.in_layers(0, 1).count() + a.in_layers(1, 4).count() == a.count()
    assert (a.in_groups(*ATTENTION_GROUPS) | a.in_groups(*FFN_GROUPS)) == a
    with pytest.raises(InputError, match="outside the model"):
        a.in_layers(2, 5)
    with pytest.raises(InputError, match="not a neuron group"):
        a.in_groups("attn_o")


def test_sets_cannot_be_changed():
    a = some()
    with pytest.raises(ValueError, match="read-only"):
        a.groups["attn_q"][0, 0] = True
    with pytest.raises(TypeError):
        a.groups["attn_q"] = None


def test_random_sets_match_layer_and_group_and_the_number_of_products():
    a = some()
    for seed in range(5):
        r = a.random_like(seed)
        assert r == a.random_like(seed)
        for group, counts in a.counts().items():
            np.testing.assert_array_equal(r.counts()[group], counts)
        np.testing.assert_array_equal(r.groups["ffn_up"], r.groups["ffn_down"])
    assert a.random_like(0) != a.random_like(1)


@pytest.mark.parametrize(("seed", "message"), [(-1, "must be 0 or more"), ("1", "whole number"), (1.0, "whole number")])
def test_seeds_are_whole_numbers(seed, message):
    with pytest.raises(InputError, match=f"^seed is .*{message}"):
        NeuronSet.empty(CONFIG).random_like(seed)


@pytest.mark.parametrize("members", [[[3, 5], [1, 2]], np.full((2, 3), np.nan), [["no", "yes"]] * 2])
def test_what_is_no_table_of_members_is_refused(members):
    """Indices would be taken for True."""
    with pytest.raises(InputError, match=r"attn_q is .*; True or False for each neuron is needed"):
        NeuronSet(dict.fromkeys(GROUPS, members))
    assert NeuronSet({group: [[0, 1], [1, 1]] for group in GROUPS}).count() == 15


def test_what_is_no_set_is_refused():
    empty, keep = NeuronSet.empty(CONFIG), NeuronMask.keep_all(CONFIG)
    with pytest.raises(InputError, match="a dict cannot be switched off; a NeuronSet is needed"):
        keep.drop({"de": empty})
    with pytest.raises(InputError, match="a neuron set and a NeuronMask cannot be combined"):
        _ = empty | keep
    with pytest.raises(InputError, match=r"start is 0\.5; a whole number"):
        empty.in_layers(0.5, 2)


def test_files_of_languages(tmp_path):
    for name in ("de.json", "._de.json", "en.json", "x.txt"):
        (tmp_path / name).touch()
    assert list(files_of_languages(tmp_path, ".json")) == ["de", "en"]
    check_language(tmp_path / "de.json", {"language": "de"})
    check_language(tmp_path / "de.json", {})
    with pytest.raises(InputError, match=r"de \(1\)\.json: of 'de' by what it says, of 'de \(1\)' by its name"):
        check_language(tmp_path / "de (1).json", {"language": "de"})


def test_languages_have_random_sets_of_their_own():
    """With one seed, two sets of the same size are drawn independently: with one permutation for all, the smaller
    would lie within the larger, and equally large ones would be the same."""
    share, seeds = 0.5, 40
    pairs, inside, size = [(some(1, share), some(2, share)), (some(3, share), some(4, share / 2))], 0, 0.0
    for a, b in pairs:
        for seed in range(seeds):
            first, second = a.random_like(seed), b.random_like(seed)
            assert first != second
            inside += (first & second).in_groups("attn_q", "ffn_up").count()
            size += second.in_groups("attn_q", "ffn_up").count() * share
    assert inside == pytest.approx(size, rel=0.1), "as many in common as chance gives"
    groups = dict(pairs[0][0].groups)
    again = NeuronSet(groups, {"language": "de", "rule": "another"})
    assert again.random_like(7) == pairs[0][0].random_like(7), "the draw is the set's and the seed's, whatever its name"


def test_random_sets_match_ends_that_differ():
    a = some()
    groups = dict(a.groups)
    groups["ffn_down"] = some(7).groups["ffn_down"]
    a = NeuronSet(groups)
    r = a.random_like(3)
    off = [np.count_nonzero(s.groups["ffn_up"] | s.groups["ffn_down"], axis=1) for s in (a, r)]
    np.testing.assert_array_equal(*off)


def test_random_draws_are_uniform():
    a = some(share=0.5).in_groups("attn_q")
    hits = sum(a.random_like(seed).groups["attn_q"].astype(int) for seed in range(400))
    share = a.counts()["attn_q"][:, None] / 16
    assert np.abs(hits / 400 - share).max() < 0.12


def test_mask_drops_what_the_set_holds():
    a = some()
    keep = NeuronMask.keep_all(CONFIG)
    mask = keep.drop(a)
    for group in GROUPS:
        np.testing.assert_array_equal(np.asarray(getattr(mask, group)) == 0, a.groups[group])
        assert np.asarray(getattr(keep, group)).all()
    b = some(5)
    both, union = mask.drop(b), keep.drop(a | b)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(union), strict=True))


def test_a_set_of_another_model_is_refused():
    wide = NeuronSet({g: np.zeros((4, 99), bool) for g in GROUPS})
    with pytest.raises(InputError, match="of another model"):
        NeuronMask.keep_all(CONFIG).drop(wide)
    with pytest.raises(InputError, match="different models"):
        _ = some() | wide


def test_save_and_load(tmp_path):
    a = some(language="de", rule="top_k:3", model={"source": "x"})
    a.save(tmp_path / "de.json")
    b = NeuronSet.load(tmp_path / "de.json")
    assert a == b
    assert dict(b.provenance) == dict(a.provenance)
    assert json.loads((tmp_path / "de.json").read_text())["count"] == a.count()
    assert [p.name for p in tmp_path.iterdir()] == ["de.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a neuron set"),
        ('{"format": "mwork-neuron-set-1"}', "damaged neuron set"),
        (
            '{"format": "mwork-neuron-set-1", "layers": 1, "widths": {"attn_q": 2}, "neurons": {"attn_q": [[5]]}}',
            "damaged",
        ),
    ],
)
def test_files_that_are_not_sets(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        NeuronSet.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def damaged(**changes) -> str:
    widths = dict.fromkeys(GROUPS, 3)
    neurons = {g: [[0, 2], []] for g in GROUPS} | changes.pop("neurons", {})
    body = {"format": "mwork-neuron-set-1", "provenance": {}, "widths": widths, "layers": 2, "count": 10}
    return json.dumps(body | {"neurons": neurons} | changes)


def test_groups_are_tables_of_one_number_of_layers():
    flat = {g: np.ones(3, bool) for g in GROUPS}
    with pytest.raises(InputError, match=r"attn_q is \[3\]; \[layers, width\] is needed"):
        NeuronSet(flat)
    with pytest.raises(InputError, match=r"ffn_down is \[1, 3\]"):
        NeuronSet({**{g: np.ones((2, 3), bool) for g in GROUPS}, "ffn_down": np.ones((1, 3), bool)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neurons": {"attn_k": [[-1, 0], []]}}, "attn_k, layer 0: -1 is not an index from 0 to 2"),
        ({"neurons": {"attn_k": [[], [0, 3]]}}, "attn_k, layer 1: 3 is not an index from 0 to 2"),
        ({"neurons": {"attn_k": [[0, 1.5], []]}}, "1.5 is not an index"),
        ({"neurons": {"attn_k": [[0, True], []]}}, "True is not an index"),
        ({"neurons": {"attn_k": [[0, 10**30], []]}}, "is not an index"),
        ({"neurons": {"attn_k": [["0", "2"], []]}}, "'0' is not an index"),
        ({"neurons": {"attn_k": [[0, 0], []]}}, "attn_k, layer 0: an index is listed twice"),
        ({"neurons": {"attn_k": [[0, 2]]}}, "attn_k has 1 layers, not the 2"),
        ({"neurons": {"attn_k": [[0, 2], [], []]}}, "attn_k has 3 layers, not the 2"),
        ({"neurons": {"attn_k": 5}}, "damaged neuron set"),
        ({"layers": 3}, "2 layers, not the 3"),
        ({"widths": dict.fromkeys(GROUPS, 10**30)}, "damaged neuron set"),
        ({"widths": dict.fromkeys(GROUPS, "3")}, "damaged neuron set"),
        ({"widths": dict.fromkeys(GROUPS, 1 << 30)}, "attn_q has width 1073741824; a whole number up to 1048576"),
        ({"widths": dict.fromkeys(GROUPS, 3.0)}, "attn_q has width 3.0"),
        ({"fingerprint": "0" * 32}, "its members are not those of its fingerprint"),
        ({"count": 9}, "'count' is 9, but 10 neurons are listed"),
        ({"provenance": [1]}, "damaged neuron set"),
    ],
)
def test_damaged_sets_are_refused(tmp_path, changes, message):
    path = tmp_path / "x.json"
    path.write_text(damaged())
    assert NeuronSet.load(path).count() == 10
    path.write_text(damaged(**changes))
    with pytest.raises(InputError, match=message) as error:
        NeuronSet.load(path)
    assert str(error.value).startswith(f"{path}: damaged neuron set (")
    assert "\n" not in str(error.value)


def test_numpy_integers_in_provenance_can_be_saved(tmp_path):
    a = some().in_layers(np.int64(1), np.int32(3)).random_like(np.uint8(4))
    a.save(tmp_path / "a.json")
    b = NeuronSet.load(tmp_path / "a.json")
    assert a == b
    assert dict(b.provenance) == {"layers": [1, 3], "random_seed": 4}
    assert a == some().in_layers(1, 3).random_like(4)


def test_sets_can_be_copied():
    a = some(language="de", of=[{"rule": "x"}])
    for b in (copy.copy(a), copy.deepcopy(a), copy.deepcopy({"sets": [a]})["sets"][0]):
        assert b == a
        assert b.provenance == a.provenance


def test_a_missing_file():
    with pytest.raises(InputError, match="no such file"):
        NeuronSet.load("nowhere.json")
