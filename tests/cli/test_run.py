"""The whole loop on a small model: results, interruption and repetition, and the command line as a user meets it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.cli.options import neurons_of
from mwork_jax.errors import InputError
from mwork_jax.report import run_report
from mwork_jax.results import RunResults, read_results

# Documents are cut, so that all have one length: each other length would be programs of its own to compile.
SHORT = mw.Batching(max_tokens=64)
QUICK = (
    "--languages", "en,de,th", "--documents", "3", "--held-out", "2", "--seeds", "2",
    "--max-tokens", str(SHORT.max_tokens), "--rule", "top_fraction:0.25",
)  # fmt: skip


def mwork(*arguments, expect=0, capture=None):
    status = main([str(a) for a in arguments])
    output = capture.readouterr() if capture else None
    assert status == expect, output
    return output


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    mwork("run", "--model", tiny_folder, "--out", out, *QUICK)
    return out


def results(out):
    """What a command wrote, which is what it prints with --json, and a checksum."""
    body = json.loads((out / "results.json").read_text())
    assert body.pop("checksum")
    return body


def test_results_say_what_made_them(finished, tiny_folder):
    made = read_results(finished / "results.json")
    assert isinstance(made, RunResults)
    provenance = made.provenance
    assert provenance.model.source == str(tiny_folder)
    assert provenance.settings.languages == ("en", "de", "th")
    assert made.stages == mw.StageSplit(4, 1, 1)
    assert provenance.versions["mwork-jax"] == mw.__version__
    assert provenance.command == ("mwork", "run", "--model", str(tiny_folder), "--out", str(finished), *QUICK)
    assert provenance.data["de"].origin == "mwork-jax data, documents.de.jsonl"
    assert provenance.data["de"].items == 5
    assert made.neurons["de"].fingerprint == mw.NeuronSet.load(finished / "neurons" / "de.json").fingerprint
    files = {"results.json", "table.txt", "report.html", "neurons", "samples", "scores", "cache", "figures"}
    assert {p.name for p in finished.iterdir()} == files


def test_rows_have_the_fields_others_rely_on(finished):
    fields = {
        "table", "task", "model", "under", "s_attn", "s_ffn", "gen", "neurons", "seeds", "eng", "n_eng", "delta_eng",
        "delta_n_eng", "delta", "delta_ci95", "n_items", "languages",
    }  # fmt: skip
    rows = results(finished)["rows"]
    assert len(rows) == 6, "random neurons everywhere, own ones everywhere and in each stage"
    for row in rows:
        assert row["kind"] == "delta"
        assert fields <= set(row)
        assert row["delta"] == pytest.approx(row["delta_eng"] - row["delta_n_eng"])
        if row["neurons"] == "random":
            assert row["delta_ci95"] is None, "two random sets say nothing of their spread"
        else:
            assert row["delta_ci95"][0] <= row["delta"] <= row["delta_ci95"][1]
            everywhere = all(row[part] for part in ("under", "s_attn", "s_ffn", "gen"))
            assert (row["beyond_random"] is not None) == everywhere, "where random sets have the same parts off"
            if everywhere:
                assert row["beyond_random"]["ci95"] is row["beyond_random"]["p_holm"] is None
        assert row["n_items"] == 6
        assert row["n_clusters"] == 2, "documents in three languages are translations of each other"


def test_a_language_s_row_equals_doing_it_by_hand(finished, tiny_folder):
    from mwork_jax.corpus import own_corpus

    model = mw.load_model(tiny_folder)
    texts = {lang: own_corpus(lang).detection[:3] for lang in ("en", "de", "th")}
    scores = {lang: mw.score_neurons(model, documents, batching=SHORT) for lang, documents in texts.items()}
    german = mw.select_neurons(scores, "top_fraction:0.25")["de"]
    keep = mw.NeuronMask.keep_all(model.config)
    documents = own_corpus("de").held_out[:2]
    before, after = (mw.held_out_loss(model, documents, m, batching=SHORT).per_token for m in (keep, keep.drop(german)))
    row = results(finished)["languages"]["de"]
    assert row["neurons"] == german.count()
    assert mw.NeuronSet.load(finished / "neurons" / "de.json") == german
    assert row["everywhere"]["own"] == pytest.approx(after - before, abs=1e-5)
    masks = [keep.drop(german.random_like(seed)) for seed in (0, 1)]
    random = [mw.held_out_loss(model, documents, mask, batching=SHORT).per_token - before for mask in masks]
    assert row["random"]["own"] == pytest.approx(random, abs=1e-5)
    assert row["random"]["own_mean"] == pytest.approx(np.mean(random), abs=1e-5)


def test_the_matrix_has_the_numbers_that_the_run_reports_elsewhere(finished):
    made = read_results(finished / "results.json")
    assert list(made.matrix) == ["de", "th"], "English's set is everything that is activated for it"
    for off, row in made.matrix.items():
        assert list(row) == ["en", "de", "th"]
        assert row[off].rise == made.languages[off].everywhere.own
        assert row["en"].rise == made.languages[off].everywhere.english
        assert all(cell.documents == 2 for cell in row.values())
    rows = list(csv.DictReader((finished / "figures" / "language-matrix.csv").open()))
    shown = {(row["off"], row["measured"]): float(row["rise"]) for row in rows}
    assert shown == {(off, lang): cell.rise for off, row in made.matrix.items() for lang, cell in row.items()}


def test_every_held_out_document_is_saved_with_its_loss_under_each_mask(finished):
    samples = mw.read_samples(finished)
    assert [sample.language for sample in samples] == ["en", "en", "de", "de", "th", "th"]
    documents = {lang: mw.own_corpus(lang).held_out[:2] for lang in ("en", "de", "th")}
    assert [sample.prompt for sample in samples] == [text for texts in documents.values() for text in texts]
    german = samples[2]
    assert {(a.under, a.neurons) for a in german.answers} == {("original", ""), ("own", "de"), ("random", "de")}
    assert [a.seed for a in german.answers if a.under == "random"] == [0, 1]
    assert sum(a.under == "own" for a in german.answers) == 5, "everywhere, and each of four stages"
    assert {a.answer for sample in samples for a in sample.answers} == {None}
    cached = [json.loads(path.read_text())["value"] for path in (finished / "cache").glob("*.json")]
    losses = {-value["nats"][n] / value["tokens"][n] for value in cached for n in range(len(value["nats"]))}
    assert {a.score for sample in samples for a in sample.answers} <= losses
    assert "Document by document" in (finished / "report.html").read_text()


def test_the_table_shows_the_results(finished):
    text = run_report(read_results(finished / "results.json"))
    assert text + "\n" == (finished / "table.txt").read_text()
    for word in ("German", "Thai", "Lang-Spec", "Random", "Δn-Eng", "switched off (rows) and measured (columns)"):
        assert word in text
    assert max(map(len, text.splitlines()[1:])) <= 125, "it should fit a terminal and a paper"


def test_running_again_computes_nothing(finished, tiny_folder, monkeypatch):
    before = (finished / "results.json").read_bytes()

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr("mwork_jax.detect.scores.score_neurons", never)
    monkeypatch.setattr("mwork_jax.evaluate.evaluations.held_out_losses", never)
    mwork("run", "--model", tiny_folder, "--out", finished, *QUICK)
    assert (finished / "results.json").read_bytes() == before


def test_other_settings_recompute_what_changed(finished, tiny_folder, tmp_path, monkeypatch):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    monkeypatch.setattr(
        "mwork_jax.detect.scores.score_neurons", lambda *a, **k: pytest.fail("scores do not depend on the rule")
    )
    mwork("run", "--model", tiny_folder, "--out", out, *QUICK[:-1], "top_k:5")
    assert results(out)["languages"]["de"]["neurons"] != results(finished)["languages"]["de"]["neurons"]


@pytest.mark.processes
def test_killed_at_any_moment_the_next_run_gives_the_same(finished, tiny_folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mwork_jax.cli", "run", "--model", tiny_folder, "--out", out, *QUICK]
    expected = results(finished)
    for begun in ("scores/*.safetensors", "cache/*.json"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list(out.glob(begun)) and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, "it should be killed in the middle"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "results.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    found = results(out)
    assert found["languages"] == expected["languages"]
    assert found["rows"] == expected["rows"]


def test_results_stay_until_a_new_run_has_succeeded(finished, tiny_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    kept = ("results.json", "table.txt", "report.html", "neurons/de.json", "neurons/th.json")
    before = {name: (out / name).read_bytes() for name in kept}
    monkeypatch.setattr(
        "mwork_jax.evaluate.evaluations.held_out_losses", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    mwork("run", "--model", tiny_folder, "--out", out, *QUICK[:-1], "top_k:5", expect=130)
    assert {name: (out / name).read_bytes() for name in kept} == before


def test_a_damaged_cache_entry_is_computed_again(tiny_folder, tmp_path):
    command = ("run", "--model", tiny_folder, "--out", tmp_path, *QUICK)
    mwork(*command)
    expected = results(tmp_path)["rows"]
    for i, entry in enumerate(sorted((tmp_path / "cache").iterdir())[:3]):
        entry.write_text(("{", '{"value": {"nats": [1]}}', "[]")[i])
    mwork(*command)
    assert results(tmp_path)["rows"] == expected  # to the bit
    assert not [entry for entry in (tmp_path / "cache").iterdir() if len(entry.read_text()) < 50]


def test_another_tokenizer_is_another_run(finished, tiny_folder, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_folder, folder)
    shutil.copytree(finished, out)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))  # no BOS any more
    mwork("run", "--model", folder, "--out", out, *QUICK)
    assert results(out)["original"] != results(finished)["original"]


@pytest.mark.processes
def test_ctrl_c_is_one_line_and_the_work_goes_on(tiny_folder, tmp_path):
    attempt = 0
    while True:  # on a busy machine a run may end before the signal
        out = tmp_path / str(attempt)
        # A shell's background job ignores the signal, and so would what it starts.
        hears = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
        script = f"{hears}; from mwork_jax.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", script, "run", "--model", tiny_folder, "--out", out, *QUICK]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not list(out.glob("scores/*.safetensors")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        if process.returncode != 0 or attempt == 4:
            break
        attempt += 1
    assert process.returncode == 130, errors
    assert "interrupted; what was finished is kept" in errors
    assert "Traceback" not in errors
    assert not (out / "results.json").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (out / "results.json").exists()


def test_a_reader_that_goes_away_is_no_error(finished):
    """As in `mwork report DIR | true`."""
    script = "import sys; from mwork_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", script, "report", str(finished), "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_name_that_is_not_utf_8_is_refused_before_any_work(tmp_path, capsys):
    name = os.fsdecode(bytes(tmp_path / "out") + b"\xff")
    assert main(["run", "--out", name]) == 2
    assert r"out\xff: a name that is not UTF-8; rename the file or folder" in capsys.readouterr().err


def test_json_is_one_object_and_progress_goes_to_stderr(finished, tiny_folder, capsys):
    output = mwork("run", "--model", tiny_folder, "--out", finished, *QUICK, "--json", capture=capsys)
    assert json.loads(output.out)["languages"]["de"]["neurons"] > 0
    assert "mwork:" in output.err


def test_own_documents(tiny_folder, tmp_path, capsys):
    for lang, words in (("en", "red blue green grey"), ("eo", "rojo azul verde gris")):
        lines = [f"{words} {i} {words[::-1]}" for i in range(6)]
        (tmp_path / f"{lang}.txt").write_text("\n".join(lines))
    data = (f"en={tmp_path}/en.txt", f"eo={tmp_path}/eo.txt")
    mwork(
        "run",
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "out",
        "--data",
        *data,
        "--documents",
        4,
        "--held-out",
        2,
        "--seeds",
        1,
    )
    assert list(results(tmp_path / "out")["languages"]) == ["eo"]
    output = mwork(
        "run", "--model", tiny_folder, "--out", tmp_path / "o2", "--data", *data, "--documents", 5, "--held-out", 2,
        expect=2, capture=capsys,
    )  # fmt: skip
    assert "2 held-out documents asked, there are 1" in output.err
    assert not (tmp_path / "o2").exists()


def test_detect_then_select(tiny_folder, tmp_path, capsys):
    for lang in ("en", "de"):
        (tmp_path / f"{lang}.txt").write_text(f"some text in {lang}\nand more of it {lang * 5}\n")
    corpora = ("--corpus", f"en={tmp_path}/en.txt", "--corpus", f"de={tmp_path}/de.txt")
    output = mwork("detect", "--model", tiny_folder, *corpora, "--out", tmp_path / "out", "--json", capture=capsys)
    assert json.loads(output.out)["scores"]["de"]["documents"] == 2
    assert json.loads(output.out) == results(tmp_path / "out")
    output = mwork("select", tmp_path / "out", "--rule", "top_k:7", "--mode", "all", "--json", capture=capsys)
    found = mw.NeuronSet.load(json.loads(output.out)["de"]["file"])
    assert found.count() == json.loads(output.out)["de"]["count"] > 0
    assert found.provenance["corpus"] == f"{tmp_path}/de.txt"


def test_select_never_replaces_a_set_silently(finished, tmp_path, capsys):
    shutil.copytree(finished / "scores", tmp_path / "scores")
    mwork("select", tmp_path, "--rule", "top_k:3")
    before = {p: p.read_bytes() for p in (tmp_path / "neurons").iterdir()}
    mwork("select", tmp_path, "--rule", "top_k:3")  # the same sets
    output = mwork("select", tmp_path, "--rule", "top_k:4", expect=2, capture=capsys)
    assert "holds another set (" in output.err
    assert "neurons, rule top_k:3, mode minus_english), which would be replaced; choose another folder" in output.err
    assert {p: p.read_bytes() for p in (tmp_path / "neurons").iterdir()} == before
    output = mwork("select", tmp_path, "--rule", "top_k:4", "--out", tmp_path / "four", "--json", capture=capsys)
    assert json.loads(output.out)["de"]["file"] == str(tmp_path / "four" / "neurons" / "de.json")
    assert {p: p.read_bytes() for p in (tmp_path / "neurons").iterdir()} == before
    mwork("select", tmp_path, "--rule", "top_k:4", "--replace")
    four = (tmp_path / "four" / "neurons" / "de.json").read_bytes()
    assert (tmp_path / "neurons" / "de.json").read_bytes() == four
    mwork("select", finished, "--rule", "top_k:4", "--out", tmp_path / "beside")  # not in the run's folder


def test_a_tolerant_rule_has_scores_that_remember_enough(tiny_folder, tmp_path, capsys):
    """Half of 20 documents may miss a neuron: 10, where scores remember 8 unless more are asked for."""
    for lang in ("en", "de"):
        (tmp_path / f"{lang}.txt").write_text("".join(f"{i:2} some text in {lang}, {lang * 3}\n" for i in range(22)))
    files = [f"{lang}={tmp_path}/{lang}.txt" for lang in ("en", "de")]
    detected, found = tmp_path / "detected", tmp_path / "found"
    detect = ("detect", "--model", tiny_folder, "--corpus", files[0], "--corpus", files[1], "--documents", 20)
    select = ("select", detected, "--rule", "top_fraction:0.3@0.5")
    mwork(*detect, "--out", detected)
    output = mwork(*select, expect=2, capture=capsys)
    assert "score again with kept=11 (`mwork detect --kept 11`)" in output.err
    mwork(*detect, "--out", detected, "--kept", 11)
    mwork(*select)
    mwork(
        "run", "--model", tiny_folder, "--data", *files, "--documents", 20, "--held-out", 2, "--seeds", 1,
        "--out", found, "--rule", "top_fraction:0.3@0.5",
    )  # fmt: skip
    sets = [mw.NeuronSet.load(folder / "neurons" / "de.json") for folder in (detected, found)]
    assert sets[0].count() > 0
    for group, members in sets[0].groups.items():
        np.testing.assert_array_equal(members, sets[1].groups[group])


def test_neurons_of_another_rule_do_not_stand_beside_results(finished, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {p: p.read_bytes() for p in (out / "neurons").iterdir()}
    output = mwork("select", out, "--rule", "top_k:3", expect=2, capture=capsys)
    assert "measured with rule top_fraction:0.25, mode minus_english" in output.err
    mwork("select", out, "--rule", "top_fraction:0.250")
    assert {p: p.read_bytes() for p in (out / "neurons").iterdir()} == before


def test_a_damaged_run_beside_scores_is_one_line(finished, tmp_path, capsys):
    shutil.copytree(finished / "scores", tmp_path / "scores")
    damaged = results(finished)
    del damaged["provenance"]["settings"]["languages"], damaged["rows"]
    (tmp_path / "results.json").write_text(json.dumps(damaged))
    output = mwork("select", tmp_path, expect=2, capture=capsys)
    assert "results.json: damaged (Object missing required field `rows`)" in output.err
    assert not (tmp_path / "neurons").exists()


def test_detect_does_not_replace_what_results_were_made_with(finished, tiny_folder, tmp_path, capsys):
    """Scores beside results of a run, or beside neurons that were selected from other scores."""
    (tmp_path / "de.txt").write_text("some text\nand more of it\n")
    detect = ("detect", "--model", tiny_folder, "--corpus", f"de={tmp_path}/de.txt")
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    output = mwork(*detect, "--out", finished, expect=2, capture=capsys)
    assert "holds the results of `mwork run`; choose another output folder with --out" in output.err
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before
    out = tmp_path / "out"
    mwork(*detect, "--out", out)
    mwork("select", out, "--mode", "all", "--rule", "top_k:3")
    mwork(*detect, "--out", out)  # the same scores
    (tmp_path / "de.txt").write_text("other text\nand more of it\n")
    before = (out / "scores" / "de.safetensors").read_bytes()
    output = mwork(*detect, "--out", out, expect=2, capture=capsys)
    assert "de.json: selected from other scores, which would be replaced" in output.err
    assert (out / "scores" / "de.safetensors").read_bytes() == before


def test_neurons_of_another_rule_are_not_left_beside_new_ones(finished, tiny_folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    fewer = [*QUICK]
    fewer[1] = "en,de"
    mwork("run", "--model", tiny_folder, "--out", out, *fewer)
    assert (out / "neurons" / "th.json").exists(), "of the same rule"
    mwork("run", "--model", tiny_folder, "--out", out, *fewer[:-1], "top_k:3")
    assert sorted(p.stem for p in (out / "neurons").iterdir()) == ["de", "en"]
    assert (out / "scores" / "th.safetensors").exists()


def test_leftovers_of_another_model_are_refused_before_any_work(finished, tiny_folder, tmp_path, capsys):
    out, model = tmp_path / "out", tmp_path / "model"
    shutil.copytree(finished, out)
    shutil.copytree(tiny_folder, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    fewer = [*QUICK]
    fewer[1] = "en,de"  # th is left of the other model
    output = mwork("run", "--model", model, "--out", out, *fewer, expect=2, capture=capsys)
    assert "th.safetensors: of another model" in output.err
    assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def test_results_of_another_command_are_not_written_over(tiny_folder, tmp_path, capsys):
    for results, whose in (
        ({"format": "mwork-results-2", "kind": "tables"}, "the results of `mwork evaluate`"),
        ({"format": "mwork-results-2", "kind": "enhance"}, "the results of `mwork enhance`"),
        ({"format": "mwork-results-1", "languages": {}}, "results of version 0.1"),
        ({"loss": 3}, "a results.json that is not of this project"),
    ):
        (tmp_path / "results.json").write_text(json.dumps(results))
        output = mwork("run", "--model", tiny_folder, "--out", tmp_path, *QUICK, expect=2, capture=capsys)
        assert f"holds {whose}; choose another output folder with --out" in output.err
        assert json.loads((tmp_path / "results.json").read_text()) == results


@pytest.mark.processes
def test_an_ugly_terminal(finished, tiny_folder):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "TERM": "dumb", "LC_ALL": "C"}
    command = [sys.executable, "-m", "mwork_jax.cli", "run", "--model", tiny_folder, "--out", finished, *QUICK]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("ascii")
    assert "Dn-Eng" in text
    assert "?" not in text


BAD = {
    "no such model": (["run", "--model", "./nowhere"], "no such model"),
    "no built-in data": (["run", "--languages", "en,it"], "language 'it' is not in the built-in data"),
    "no code of two letters": (["run", "--languages", "en,xx"], "'xx' is not a language code of ISO 639"),
    "no documents": (["run", "--documents", "0"], "0 detection documents asked; at least 1 is needed"),
    "without English": (["run", "--languages", "de,th"], "must include en"),
    "English alone": (["run", "--languages", "en"], "at least one language other than en"),
    "too many documents": (["run", "--documents", "33"], "33 detection documents asked, there are 32"),
    "no unit": (["run", "--memory", "12"], "--memory 12: a size is needed, as in 12GB or 800MB"),
    "no memory": (["run", "--memory", "0GB"], "--memory 0GB: a size is needed"),
    "too many digits": (["run", "--memory", "9" * 400 + "GB"], "a size is needed"),
    "less than the weights": (["run", "--memory", "1MB"], "of which the weights alone take"),
    "rule": (["run", "--rule", "best:3"], "rule 'best:3' is not one of"),
    "mode": (["run", "--mode", "minus"], "mode 'minus' is not one of minus_english"),
    "mode without a number": (["run", "--mode", "shared_by:many"], "mode 'shared_by:many' is not one of minus_english"),
    "mode of more languages": (
        ["run", "--languages", "en,de", "--mode", "shared_by:3"],
        "mode shared_by:3 needs at least 3 languages; there are en, de",
    ),
    "a mode that has no languages to tune": (
        ["enhance", "--language", "de", "--mode", "shared_by:=3"],
        "mode shared_by:=3 needs at least 3 languages; there are en, de",
    ),
    "matrix": (["run", "--matrix-documents", "-1"], "--matrix-documents -1: it must be at least 0"),
    "seeds": (["run", "--seeds", "0"], "--seeds 0: it must be at least 1"),
    "not a number": (["run", "--documents", "many"], "invalid int value: 'many'"),
    "unknown option": (["run", "--fast"], "unrecognized arguments: --fast"),
    "misspelt option": (["run", "--langauges=de"], "unrecognized arguments: --langauges=de; --languages is meant?"),
    "unknown command": (["dance"], "invalid choice: 'dance'"),
    "no command": ([], "required: COMMAND"),
    "data without language": (["run", "--data", "file.txt"], "LANG=FILE is needed"),
    "data twice": (["run", "--data", "en=a", "en=b"], "'en' is given twice"),
    "data missing": (["run", "--data", "en=nowhere.txt", "de=nowhere.txt"], "nowhere.txt: no such file"),
    "data language": (["run", "--languages", "en,de", "--data", "en=a", "fr=b"], "has no documents for 'de'"),
    "a path as language": (["detect", "--corpus", "../x=file.txt"], "'../x' is not a language code"),
    "a language to tune": (["enhance", "--language", "d e"], "--language: 'd e' is not a language code"),
    "kept": (["detect", "--corpus", "en=a", "--kept", "0"], "--kept 0: it must be at least 1"),
    "a name for a code": (["run", "--languages", "en,german"], "'german' is not a language code; did you mean de, Ger"),
    "its own name": (["steer", "--languages", "español"], "'español' is not a language code; did you mean es, Span"),
    "a country": (["detect", "--corpus", "jp=file.txt"], "'jp' is not a language code; did you mean ja, Japanese?"),
    "no language": (
        ["run", "--languages", "en,klingon"],
        "of ISO 639, as en and yue are; for one of your own write x-k",
    ),
    "one file name": (["run", "--data", "zh-tw=a", "zh-TW=b"], "zh-tw and zh-TW differ only in capital letters"),
    "one language twice": (["run", "--languages", "en,de,EN"], "en and EN differ only in capital letters"),
    "a trailing comma": (["run", "--languages", "en,de,"], "'' is not a language code"),
    "nothing to select from": (["select", "."], "no scores/LANG.safetensors"),
    "corpus missing": (["detect", "--corpus", "en=nowhere.txt"], "nowhere.txt: no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    output = mwork(*arguments, expect=2, capture=capsys)
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.err.startswith("mwork: ")
    assert output.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_file_too_deep_is_said(finished, capsys):
    for arguments, message in (
        (("select", finished / "scores"), "give the folder that scores/LANG.safetensors are in"),
        (("select", finished / "scores" / "de.safetensors"), "give the folder that scores/LANG.safetensors are in"),
        (("report", finished / "results.json"), "results.json: a file; give the folder that it is in"),
    ):
        output = mwork(*arguments, expect=2, capture=capsys)
        assert message in output.err
        assert output.err.count("\n") == 1
    for given in (finished / "neurons", finished / "neurons" / "de.json"):
        with pytest.raises(InputError, match=r"--neurons takes the folder that neurons/de.json is in$"):
            neurons_of(given, ("de",))


def test_documents_that_two_languages_share_are_said(tiny_folder, tmp_path, capsys):
    texts = {"en": "one text\nanother\n", "de": "one text\nanother\n", "fr": "third text\n" * 3}
    corpora = []
    for language, text in texts.items():
        (tmp_path / f"{language}.txt").write_text(text)
        corpora += ["--corpus", f"{language}={tmp_path}/{language}.txt"]
    output = mwork("detect", "--model", tiny_folder, *corpora, "--out", tmp_path / "out", capture=capsys)
    lines = [line for line in output.err.splitlines() if "warning" in line]
    assert lines == [
        "mwork: warning: en and de: 2 documents are the same; is one file given for both?",
        "mwork: warning: fr: 3 documents, of which 1 are different",
    ]


def test_stages_that_do_not_fit(tiny_folder, tmp_path, capsys):
    output = mwork(
        "run", "--model", tiny_folder, "--n1", 3, "--n2", 2, "--out", tmp_path, *QUICK, expect=2, capture=capsys
    )
    assert "do not fit a model of 4 layers" in output.err


def test_corpora_that_cannot_be_scored(tiny_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    path = folder / "tokenizer.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "post_processor": None})
    )  # no BOS: a letter is one token
    (tmp_path / "good.txt").write_text("long enough\n")
    for name, content, message in (
        ("empty.txt", b"", "no documents"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("short.txt", b"long enough\nx\n", "short.txt: document 2 has 1 token; at least two are needed"),
    ):
        (tmp_path / name).write_bytes(content)
        corpora = ("--corpus", f"en={tmp_path}/good.txt", "--corpus", f"de={tmp_path}/{name}")
        output = mwork("detect", "--model", folder, *corpora, "--out", tmp_path / "out", expect=2, capture=capsys)
        assert message in output.err
        assert output.err.count("\n") == 1
        assert not (tmp_path / "out").exists(), "nothing is written before everything was read"


def test_detecting_again_computes_nothing(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "en.txt").write_text("some text\nand more\n")
    command = ("detect", "--model", tiny_folder, "--corpus", f"en={tmp_path}/en.txt", "--out", tmp_path / "out")
    mwork(*command)
    monkeypatch.setattr("mwork_jax.detect.scores.score_neurons", lambda *a, **k: pytest.fail("computed again"))
    mwork(*command)


def test_a_full_disk_is_one_line(finished, tiny_folder, tmp_path, monkeypatch, capsys):
    import errno

    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    output = mwork("run", "--model", tiny_folder, "--out", out, *QUICK[:-1], "top_k:3", expect=2, capture=capsys)
    assert "No space left on device" in output.err
    assert "Traceback" not in output.err
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert set(before) - set(after) <= {out / "results.json", out / "table.txt", out / "report.html"}
    assert all(before[p] == content for p, content in after.items()), "nothing half-written"


def test_a_full_disk_while_scores_are_saved(tiny_folder, tmp_path, monkeypatch, capsys):
    from safetensors import SafetensorError

    def full(arrays, path, metadata):
        path.write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("mwork_jax.runtime.files.save_file", full)
    output = mwork("run", "--model", tiny_folder, "--out", tmp_path / "out", *QUICK, expect=2, capture=capsys)
    assert "No space left on device" in output.err
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_an_output_folder_that_cannot_be(tiny_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    output = mwork("run", "--model", tiny_folder, "--out", tmp_path / "file" / "out", *QUICK, expect=2, capture=capsys)
    assert "cannot write there" in output.err


@pytest.mark.parametrize("command", ["run", "detect", "select"])
def test_help_has_one_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert capsys.readouterr().out.count("example:") == 1
