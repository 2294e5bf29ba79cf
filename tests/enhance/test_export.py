"""A tuned model for others: the folder in HF PyTorch, the delta file, and `mwork enhance` as a user meets it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.corpus import own_corpus
from mwork_jax.enhance import Tuned, export
from mwork_jax.enhance.export import hf_config
from mwork_jax.enhance.neuron_params import parameter_arrays
from mwork_jax.families import config_from_hf
from mwork_jax.neurons import NeuronMask, NeuronSet, group_widths
from mwork_jax.report import read_report
from mwork_jax.results import EnhanceResults, read_results, versions
from mwork_jax.runtime.files import checksum_of
from mwork_jax.settings import EnhanceSettings, TuneSettings
from support.paths import ROOT
from support.tiny import DISTINCT, FAMILIES, pair, tokens, torch, transformers
from support.tuned import tuned_model


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_config_round_trip(family, kv_heads):
    config = pair(family, kv_heads).config
    written = json.loads(json.dumps(hf_config(config)))
    assert config_from_hf(written) == config


@pytest.mark.parametrize("family", DISTINCT)
def test_the_folder_in_hf_pytorch_is_the_tuned_model(family, tmp_path):
    tuned = tuned_model(family)
    mw.save_folder(tuned, tmp_path)
    ids = tokens(2, 19)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert hf.dtype == torch.float32
    with torch.no_grad():
        theirs = hf(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    keep = NeuronMask.keep_all(tuned.config)
    np.testing.assert_allclose(mw.forward(tuned, ids, keep), theirs, atol=1e-5, rtol=1e-5)
    assert np.abs(theirs - np.asarray(mw.forward(tuned.base, ids, keep))).max() > 0.01
    assert mw.load_model(tmp_path, dtype="float32").key == tuned.key
    card = (tmp_path / "README.md").read_text()
    assert "4.0000 before, 3.5000 after 1 steps" in card
    assert "found by language | de" in card


def test_shards_and_bfloat16(tmp_path, monkeypatch):
    tuned = tuned_model("gemma3")
    monkeypatch.setattr("mwork_jax.enhance.export._SHARD_BYTES", 20_000)
    mw.save_folder(tuned, tmp_path, dtype="bfloat16")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    loaded = mw.load_model(tmp_path, dtype="float32")
    for name, array in parameter_arrays(loaded.decoder).items():
        np.testing.assert_allclose(array, parameter_arrays(tuned.decoder)[name], rtol=2**-8, atol=1e-6)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert "rounded to bfloat16" in (tmp_path / "README.md").read_text()
    monkeypatch.undo()
    mw.save_folder(tuned, tmp_path)
    assert [p.name for p in tmp_path.glob("model*")] == ["model.safetensors"], "nothing is left of the shards"
    assert mw.load_model(tmp_path, dtype="float32").key == tuned.key
    assert "bit for bit" in (tmp_path / "README.md").read_text()
    with pytest.raises(mw.InputError, match="dtype 'float16' is not supported; use float32 or bfloat16"):
        mw.save_folder(tuned, tmp_path, dtype="float16")
    assert (tmp_path / "config.json").exists()


def test_a_tokenizer_that_cannot_be_written_leaves_none_half_written(tmp_path):
    class OnFullDisk:
        def save_pretrained(self, folder):
            Path(folder, "tokenizer.json").write_text("{")
            raise Exception("No space left on device (os error 28)")

    tuned = tuned_model("llama")
    with pytest.raises(OSError, match="No space left"):
        mw.save_folder(replace(tuned, tokenizer=OnFullDisk()), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_delta_file_makes_the_tuned_model_of_its_base(family, tmp_path):
    tuned, path = tuned_model(family), tmp_path / "delta.safetensors"
    mw.save_delta(tuned, path)
    applied = mw.apply_delta(tuned.base, path)
    for name, array in parameter_arrays(applied.decoder).items():
        np.testing.assert_array_equal(array, parameter_arrays(tuned.decoder)[name], err_msg=name)
    with pytest.raises(mw.InputError, match=r"belongs to tiny \(float32, weights \w+\), the model given is"):
        mw.apply_delta(applied, path)
    selected = sum(v.size for n, v in load_file(path).items() if n.endswith("values"))
    assert path.stat().st_size < 1.3 * 4 * selected + 20_000
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(mw.InputError, match=r"damaged.safetensors: cannot be read as a delta file"):
        mw.apply_delta(tuned.base, damaged)
    save_file({"x": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(mw.InputError, match="not a delta file"):
        mw.apply_delta(tuned.base, tmp_path / "other.safetensors")


@cache
def tuned_llama(seed: int = 0) -> Tuned:
    return tuned_model("llama", seed=seed)


def test_names_of_others_stay_text_in_the_model_card(tmp_path):
    tuned = tuned_llama()
    foreign = {"rule\n\n<script>alert(1)</script>": "![x](http://evil/p.png) | `a`"}
    neurons = NeuronSet(tuned.neurons.groups, {**tuned.neurons.provenance, **foreign})
    card = export._card(
        replace(tuned, result=replace(tuned.result, run=replace(tuned.result.run, neurons=neurons))), "float32", {}, {}
    )
    assert "<script" not in card
    assert "\n\n<" not in card
    assert "![x](" not in card


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def foreign(name, content):
    def write(folder):
        (folder / name).write_bytes(content) if isinstance(content, bytes) else content(folder / name)

    return write


FOREIGN = {
    "weights": foreign("model.safetensors", lambda path: save_file({"x": np.zeros(1)}, path, {"format": "pt"})),
    "shards": foreign("model-00001-of-00002.safetensors", lambda path: save_file({"x": np.zeros(1)}, path)),
    "an index": foreign("model.safetensors.index.json", b'{"metadata": {}, "weight_map": {}}'),
    "PyTorch's": foreign("pytorch_model.bin", b"x"),
    "Flax's": foreign("flax_model.msgpack", b"x"),
    "a config alone": foreign("config.json", b"{}"),
    "a project's README": foreign("README.md", b"# My project"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_is(case, tmp_path):
    FOREIGN[case](tmp_path)
    before = contents(tmp_path)
    with pytest.raises(mw.InputError, match="which mwork did not write; choose another folder") as error:
        mw.save_folder(tuned_llama(), tmp_path)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_other_files_stay_beside_the_model(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for seed in (0, 1):
        mw.save_folder(tuned_llama(seed), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {
        "notes.txt", "model.safetensors", "config.json", "README.md", "mwork.json",
    }  # fmt: skip


def test_a_model_that_was_trained_on_is_not_replaced(tmp_path):
    """Another trainer loads our folder and saves into it; the list of our files still names what is there."""
    mw.save_folder(tuned_llama(), tmp_path)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(mw.InputError, match=r"holds model\.safetensors, which mwork did not write"):
        mw.save_folder(tuned_llama(1), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["../keep.txt", "/etc/hostname", "link/keep.txt", 3, "é" * 128])
def test_a_list_that_names_files_elsewhere_deletes_none(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "keep.txt").write_text("mine")
    (folder / "link").symlink_to(tmp_path)
    (folder / "mwork.json").write_text(json.dumps({"format": "mwork-model-1", "files": [name]}))
    mw.save_folder(tuned_llama(), folder)
    assert (tmp_path / "keep.txt").read_text() == "mine"
    assert mw.load_model(folder, dtype="float32").key == tuned_llama().key


@pytest.mark.parametrize("moment", range(4))
def test_an_error_while_writing_leaves_the_old_model_whole(moment, tmp_path, monkeypatch):
    mw.save_folder(tuned_llama(), tmp_path)
    before, left, real = contents(tmp_path), [moment], os.fsync

    def full(handle):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        real(handle)

    monkeypatch.setattr("mwork_jax.enhance.export._SHARD_BYTES", 20_000)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        mw.save_folder(tuned_llama(1), tmp_path)
    assert contents(tmp_path) == before


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from mwork_jax.enhance.export import _put_in_place
old, new, out = map(Path, sys.argv[1:])
for moment in range(100):
    folder = out / str(moment)
    shutil.copytree(old, folder)
    shutil.copytree(new, folder / "new")
    if not os.fork():  # nothing here has started a thread
        count = -1
        def watch(event, arguments):
            global count
            if event in ("os.rename", "os.remove", "open") and str(arguments[0]).startswith(str(out)):
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        _put_in_place(folder / "new", folder)
        os._exit(0)
    if os.WIFEXITED(os.wait()[1]):
        break
"""


@pytest.mark.processes
def test_killed_at_any_moment_the_folder_is_the_old_model_the_new_one_or_none(tmp_path, monkeypatch):
    """The old one in shards, the new one whole, and the other way round: killed at every file that is opened, moved or
    removed while they change places."""
    monkeypatch.setattr("mwork_jax.enhance.export._SHARD_BYTES", 20_000)
    mw.save_folder(tuned_llama(), tmp_path / "shards")
    monkeypatch.undo()
    mw.save_folder(tuned_llama(1), tmp_path / "whole")
    keys = {tuned_llama(seed).key["weights"] for seed in (0, 1)}
    for first, second in (("shards", "whole"), ("whole", "shards")):
        new, out = tmp_path / f"new-{second}", tmp_path / f"{first}-{second}"
        shutil.copytree(tmp_path / second, new, ignore=shutil.ignore_patterns("mwork.json"))
        command = [sys.executable, "-c", KILLED, *map(str, (tmp_path / first, new, out))]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        states = []
        for folder in sorted(out.iterdir(), key=lambda path: int(path.name)):
            if (folder / "config.json").exists():
                states.append(mw.load_model(folder, dtype="float32").key["weights"])
            else:
                with pytest.raises(mw.InputError, match=r"no config\.json"):
                    mw.load_model(folder, dtype="float32")
                states.append(None)
        assert len(states) > 8
        assert states[0] == tuned_llama(int(first == "whole")).key["weights"]
        assert states[-1] == tuned_llama(int(second == "whole")).key["weights"]
        assert set(states) == keys | {None}
        mw.save_folder(tuned_llama(), folder := out / str(states.index(None)))
        assert mw.load_model(folder, dtype="float32").key == tuned_llama().key
        assert not list(folder.glob("model-*")), "nothing is left of the shards"


@pytest.fixture(scope="module")
def delta(tmp_path_factory):
    path = tmp_path_factory.mktemp("delta") / "delta.safetensors"
    mw.save_delta(tuned_llama(), path)
    return path


def header_of(path):
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata())


def test_no_changed_byte_of_a_delta_is_applied(delta, tmp_path):
    whole = delta.read_bytes()
    rng = np.random.default_rng(0)
    beginning = 8 + int.from_bytes(whole[:8], "little")
    places = [*rng.integers(0, beginning, 40), *rng.integers(beginning, len(whole), 40), len(whole) - 1]
    path = tmp_path / "changed.safetensors"
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(mw.InputError) as error:
            mw.apply_delta(tuned_llama().base, path)
        assert "\n" not in str(error.value)


def without(name):
    return lambda tensors: tensors.pop(name)


def changed(name, change):
    def apply(tensors):
        tensors[name] = change(tensors[name])

    return apply


def put(name, place, value):
    def change(tensor):
        tensor = tensor.copy()
        tensor[place] = value
        return tensor

    return changed(name, change)


def one_more(tensors):
    for part in ("index", "values"):
        tensors[f"q.{part}"] = np.concatenate([tensors[f"q.{part}"]] * 40)


FAULTS = {
    "missing": (without("q.values"), r"q\.values is missing"),
    "one of another kind": (lambda t: t.update(x=np.zeros(1)), "x is not part of a delta"),
    "past the last layer": (put("q.index", (0, 0), 3), "q: there is no layer 3"),
    "past the last neuron": (put("down.index", (0, 1), 48), r"down: there is no layer \d, neuron 48"),
    "negative": (put("k.index", (0, 1), -1), "k: there is no layer 0, neuron -1"),
    "twice": (changed("v.index", lambda x: np.concatenate([x[:1], x[:1], x[2:]])), "v: a neuron is there twice"),
    "not a number": (put("up.values", (0, 0), np.nan), "up: a value is not finite"),
    "infinite": (put("up.values", (-1, -1), -np.inf), "up: a value is not finite"),
    "of another width": (changed("q.values", lambda x: x[:, :-1].copy()), "q has shapes"),
    "of other lengths": (changed("q.index", lambda x: x[:-1].copy()), "q has shapes"),
    "flat": (changed("q.index", lambda x: x.reshape(-1)), "q has shapes"),
    "in float64": (changed("q.values", lambda x: x.astype(np.float64)), "q has dtypes I32 and F64"),
    "in float16": (changed("q.values", lambda x: x.astype(np.float16)), "q has dtypes I32 and F16"),
    "with an index of floats": (changed("q.index", lambda x: x.astype(np.float32)), "q has dtypes F32 and F32"),
    "more than there are": (one_more, r"q has \d+ rows; the model has \d+ neurons in attn_q"),
    "of other neurons than its group": (changed("up.index", lambda x: x[::-1].copy()), "up: its neurons are not those"),
}


@pytest.mark.parametrize("version", ["mwork-delta-1", "mwork-delta-2"])
@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.filterwarnings("ignore:.*without a checksum")
def test_a_delta_that_does_not_fit_is_one_line(case, version, delta, tmp_path):
    """Whoever writes the file, with a checksum that fits or without one."""
    change, message = FAULTS[case]
    tensors, header = load_file(delta), {k: v for k, v in header_of(delta).items() if k != "sha256"}
    change(tensors)
    header["format"] = version
    if version == "mwork-delta-2":
        header["sha256"] = checksum_of(header, tensors)
    save_file(tensors, tmp_path / "delta.safetensors", header)
    with pytest.raises(mw.InputError, match=rf"delta\.safetensors: damaged \({message}") as error:
        mw.apply_delta(tuned_llama().base, tmp_path / "delta.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("base", [None, "", "{", "[]", "3", "{}", '{"source": "x"}', '{"source": NaN}', '"x"'])
def test_a_delta_whose_base_cannot_be_read_is_one_line(base, delta, tmp_path):
    header = header_of(delta) | {"base": base}
    save_file(load_file(delta), tmp_path / "x.safetensors", {k: v for k, v in header.items() if v is not None})
    with pytest.raises(mw.InputError, match=r"x\.safetensors: ") as error:
        mw.apply_delta(tuned_llama().base, tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


def test_a_delta_of_version_0_1_is_read_with_a_warning(delta, tmp_path):
    header = {k: v for k, v in header_of(delta).items() if k != "sha256"} | {"format": "mwork-delta-1"}
    save_file(load_file(delta), tmp_path / "x.safetensors", header)
    with pytest.warns(UserWarning, match="without a checksum; its values are not verified"):
        applied = mw.apply_delta(tuned_llama().base, tmp_path / "x.safetensors")
    assert applied.key == tuned_llama().key
    save_file(load_file(delta), tmp_path / "x.safetensors", header | {"format": "mwork-delta-2"})
    with pytest.raises(mw.InputError, match="its checksum is another"):
        mw.apply_delta(tuned_llama().base, tmp_path / "x.safetensors")


TUNING = (
    "--dtype", "float32", "--max-tokens", "64", "--batch", "4", "--epochs", "1", "--validate-every", "2",
    "--learning-rate", "0.01",
)  # fmt: skip


def enhance(*arguments, expect=0, capture=None):
    status = main(["enhance", *(str(a) for a in arguments)])
    output = capture.readouterr() if capture else None
    assert status == expect, output
    return output


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("enhanced")
    enhance("--model", tiny_folder, "--out", out, "--documents", 16, "--rule", "top_fraction:0.3", *TUNING)
    return out


def results_in(folder):
    results = read_results(folder / "results.json")
    assert isinstance(results, EnhanceResults)
    return results


def test_mwork_enhance(finished, tiny_folder):
    results = results_in(finished)
    (row,), (run,) = results.rows, results.runs.values()
    assert row.task == "held-out loss"
    assert (row.language, row.neurons, row.documents, row.table, row.seeds) == ("de", "lang-spec", 16, 6, 1)
    assert row.own_beyond_random is None, "without --seeds there is no control"
    held_out = len(own_corpus("de").held_out)
    assert (row.n_items, row.n_clusters) == (2 * held_out, held_out), "parallel documents"
    assert row.delta_n_eng_ci95[0] < row.delta_n_eng < row.delta_n_eng_ci95[1]
    base, tuned = (mw.load_model(path, dtype="float32") for path in (tiny_folder, finished / "model"))
    keep = NeuronMask.keep_all(base.config)
    for model, expected in ((base, row.n_eng - row.delta_n_eng), (tuned, row.n_eng)):
        found = mw.held_out_loss(model, own_corpus("de").held_out, keep, batching=mw.Batching(64)).per_token
        assert -found == pytest.approx(expected, abs=1e-4)
    assert run.kept == pytest.approx(1, abs=1e-4)
    assert row.delta_n_eng > 0.05
    assert mw.apply_delta(base, finished / "delta.safetensors").key == tuned.key
    assert mw.NeuronSet.load(finished / "neurons" / "de.json").count() == run.neurons


def test_what_made_the_results(finished, tiny_folder):
    provenance = results_in(finished).provenance
    assert provenance.command == (
        "mwork", "enhance", "--model", str(tiny_folder), "--out", str(finished), "--documents", "16", "--rule",
        "top_fraction:0.3", *TUNING,
    )  # fmt: skip
    tune = TuneSettings(max_tokens=64, batch=4, epochs=1, validate_every=2, learning_rate=0.01)
    assert provenance.settings == EnhanceSettings((16,), 0, 8, tune)
    assert (provenance.versions, provenance.seed) == (versions(), 0)
    assert provenance.model.source == str(tiny_folder)
    assert (provenance.data["de"].origin, len(provenance.data)) == (own_corpus("de").origin, 1)
    measured = results_in(finished).items["held-out loss"]["fr"]
    assert (measured.origin, measured.items) == (own_corpus("fr").origin, len(own_corpus("fr").held_out))
    held_out = f"German {len(own_corpus('de').held_out)} (mwork-jax data, documents.de.jsonl)"
    assert held_out in " ".join((finished / "table.txt").read_text().split())


def test_again_it_computes_nothing(finished, tiny_folder, monkeypatch):
    before = (finished / "results.json").read_bytes()
    monkeypatch.setattr("mwork_jax.enhance.tune.train_step", lambda *a: pytest.fail("trained again"))
    monkeypatch.setattr("mwork_jax.evaluate.evaluations.held_out_losses", lambda *a, **k: pytest.fail("measured again"))
    enhance("--model", tiny_folder, "--out", finished, "--documents", 16, "--rule", "top_fraction:0.3", *TUNING)
    assert (finished / "results.json").read_bytes() == before


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(mw.InputError, match="a Model has no delta to save; what `fine_tune` returns"):
        mw.save_delta(mw.Model(None, None, "plain"), tmp_path / "x")
    with pytest.raises(mw.InputError, match=r"model is a str; a Model is needed, as mw.load_model gives"):
        mw.save_folder("gemma3-270m", tmp_path / "x")


def without_command(results):
    """Results of the same work in another folder, which the command names."""
    return replace(results, provenance=replace(results.provenance, command=()))


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [1, 100])
def test_a_disk_that_is_full_is_one_line_and_nothing_is_lost(kilobytes, finished, tiny_folder, tmp_path):
    """No file may become larger: scores, checkpoints or the model cannot be written whole. Then there is room again."""
    asked = ("--model", tiny_folder, "--out", tmp_path, "--documents", 16, "--rule", "top_fraction:0.3", *TUNING)
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes * 1024},) * 2)"
    script = f"import sys; {limit}; from mwork_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "enhance", *map(str, asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert all(line.startswith("mwork: ") for line in done.stderr.strip().splitlines()), done.stderr[:2000]
    assert not list(tmp_path.rglob("*.part"))
    enhance(*asked)
    assert without_command(results_in(tmp_path)) == without_command(results_in(finished))
    again, expected = (load_file(folder / "model/model.safetensors") for folder in (tmp_path, finished))
    assert again.keys() == expected.keys()
    assert all(again[name].tobytes() == expected[name].tobytes() for name in expected)
    found, expected = (load_file(folder / "delta.safetensors") for folder in (tmp_path, finished))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.slow
def test_a_sweep_makes_table_6_and_figure_4(tiny_folder, tmp_path, capsys):
    out = enhance(
        "--sweep", "--model", tiny_folder, "--out", tmp_path, "--language", "de,th", "--documents", "8,16",
        "--seeds", 2, "--rule", "top_fraction:0.3", "--tasks", "xcsqa", "--items", 2, *TUNING, capture=capsys,
    ).out  # fmt: skip
    results = results_in(tmp_path)
    assert len(results.runs) == 2 * 2 * 2 * 2
    assert len(results.rows) == 2 * 2 * 2 * 2, "measures x languages x documents x kinds"
    assert out.count("Table 6: held-out loss (minus nats per token, higher is better), 8 documents") == 1
    for word in ("Original", "Random", "Lang-Spec", "beyond Random", "German", "Thai", "xcsqa"):
        assert word in out
    gain = {(r.task, r.language, r.documents, r.neurons): r.delta_n_eng for r in results.rows}
    for row in results.rows:
        assert (row.own_beyond_random is not None) == (row.neurons == "lang-spec")
        if row.own_beyond_random is not None:
            own, random = (gain[row.task, row.language, row.documents, k] for k in ("lang-spec", "random"))
            assert row.own_beyond_random.change == pytest.approx(own - random, abs=1e-9)
            assert row.own_beyond_random.ci95 is row.own_beyond_random.p is None, "of two seeds there is no interval"
    figure = (tmp_path / "figure4.svg").read_text()
    for title in (">held-out loss</text>", ">xcsqa format"):
        assert figure.count(title) == 1, "a panel for each measure"
    assert figure.count(">Lang-Spec</text>") == figure.count(">Random</text>") == 2
    read_report(tmp_path).write()
    assert (tmp_path / "figures" / "figure-4.svg").read_text() == figure
    assert len(list((tmp_path / "figures").glob("table-6-*.csv"))) == 4
    assert len(list((tmp_path / "deltas").glob("*.safetensors"))) == 4
    assert not (tmp_path / "model").exists()


def test_bad_input_is_one_line(tiny_folder, tmp_path, capsys):
    few = tmp_path / "few.txt"
    few.write_text("Ein Satz.\n\nNoch einer.\n")
    empty, other = tmp_path / "empty", tmp_path / "other"
    widths = group_widths(mw.load_model(tiny_folder).config)
    for language, share in (("de", 0.2), ("th", 0.0)):
        rng, layers = np.random.default_rng(0), mw.load_model(tiny_folder).config.num_layers
        selected = NeuronSet({g: rng.random((layers, w)) < share for g, w in widths.items()}, {})
        selected.save(empty / "neurons" / f"{language}.json")
    other.mkdir()
    (other / "results.json").write_text('{"format": "mwork-results-1", "languages": {}}')
    cases = {
        "400 documents asked, there are 2": ("--corpus", few, "--documents", 400),
        "500 steps asked": ("--documents", 16, "--steps", 500),
        "English is what the other languages are compared with": ("--language", "en"),
        "several with --sweep": ("--language", "de,th"),
        "a whole number is needed": ("--documents", "many"),
        "no such file": ("--neurons", tmp_path),
        "learning_rate is 0": ("--learning-rate", 0),
        "it has none of de": ("--tasks", "xcopa"),
        "mode 'most' is not one of": ("--mode", "most"),
        "seed is -1": ("--seed", -1),
        "th-lang-spec-16-0: the neuron set is empty": (
            "--sweep",
            "--language",
            "de,th",
            "--neurons",
            empty,
            "--documents",
            16,
            "--at-once",
            1,
        ),
        "holds results of version 0.1; choose another output folder": ("--out", other),
        "not finite": ("--documents", 16, "--learning-rate", 1e30),
    }
    for message, arguments in cases.items():
        out = tmp_path / "out"
        output = enhance("--model", tiny_folder, "--out", out, *TUNING, *arguments, expect=2, capture=capsys)
        last = output.err.strip().splitlines()[-1]
        assert message in last
        assert last.startswith("mwork: ")
        assert not (out / "model").exists()
    assert not list((tmp_path / "out" / "checkpoints").glob("*/[!.]*")), "no run began before a bad one was found"
