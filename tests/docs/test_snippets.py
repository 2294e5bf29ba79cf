"""What the pages show runs: every Python program on a tiny model, every command through the real parser, and those that
need nothing else on the tiny model too."""

import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.cli import main
from mwork_jax.errors import InputError
from support.paths import ROOT
from support.snippets import PAGES, Command, blocks, check, commands

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
# What the pages' model has and the tiny one has not, and what would take long.
INSTEAD = {
    'steer(9, vectors["de"][9]': 'steer(2, vectors["de"][2]',
    "experts=128": "experts=4",
    "mw.routing(scores)": "mw.routing(of_a_mixture)",
    "items=12": "items=1, seeds=1",
    'read_samples("mwork-tables")': 'read_samples("mwork-results")',  # each document's loss, not answers
    "mw.TABLES[2]": "mw.TABLES[4]",
    'RunSettings(languages=("en", "de"))': 'RunSettings(languages=("en", "de"), documents=3, held_out=2, seeds=1)',
}
# Added to a command that does not say otherwise: what takes long with the defaults.
QUICK = {
    "run": "--languages en,de --documents 3 --held-out 2 --seeds 1 --max-tokens 64",
    "detect": "--max-tokens 64",
    "enhance": "--rule top_fraction:0.5 --held-out vi=vi.txt --held-out en=en.txt --max-tokens 64",
    "lens": "--languages en,de --documents 1 --max-tokens 32",
}
WITHOUT_MODEL = ("select", "report", "tables")
# Commands that are parsed only, by what begins them or is in them, and why.
ONLY_PARSED = {
    "mwork run --model model.gguf": "tests/load/test_gguf.py makes such files",
    "mwork run --data": "the same run as with the project's own documents, but for the files",
    "mwork evaluate": "a minute; tests/evaluate/test_table_run.py runs it",
    "mwork enhance --sweep": "minutes; tests/cli/test_run.py runs one",
    "mwork plan": "compiles for minutes; tests/plan/test_plan.py plans for small models",
    "--mesh data=4,model=2": "needs eight devices; tests/test_sharding.py has them",
    "mwork paper": "minutes to hours; tests/test_paper.py runs one",
    "mwork steer": "minutes; tests/test_steering.py runs it",
    "bash scripts/": "installs packages, or needs a pod",
    "python scripts/": "minutes to hours",
    "python -m mwork_jax.evaluate.lm_eval_model": "the harness fetches the task",
    "pip install": "installs packages",
}
WHOLE = list(dict.fromkeys(c for page in PAGES for c in commands(page) if c.whole))


def reason_not_to_run(command):
    return next((why for part, why in ONLY_PARSED.items() if part in command.text), None)


RUN = [command for command in WHOLE if not reason_not_to_run(command)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder):
    """Files with the names that the pages use, and a run's results."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "folder").symlink_to(tiny_folder)
    short = {lang: [text[:60] for text in _texts(lang)] for lang in ("en", "de", "vi")}
    files = {"english": "en", "en": "en", "german": "de", "de": "de", "vietnamese": "vi", "vi": "vi", "th": "vi"}
    for name, lang in files.items():
        (folder / f"{name}.txt").write_text("\n\n".join(short[lang]), encoding="utf-8")
    (folder / "mine.toml").write_text(blocks("docs/tables.md", "toml")[0], encoding="utf-8")
    rows = [json.dumps({"text": text}) for text in short["de"]]
    (folder / "portuguese.jsonl").write_text("\n".join(rows))
    (folder / "questions").mkdir()
    for lang in ("en", "de"):
        row = {"question": "France?", "choices": ["Paris", "Rome"], "answer": 0}
        (folder / "questions" / f"capitals.{lang}.jsonl").write_text("\n".join([json.dumps(row)] * 3))
    mine = re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "tables.md").read_text(encoding="utf-8"), re.DOTALL)
    (folder / "mine.toml").write_text(mine[1], encoding="utf-8")
    (folder / "tasks").mkdir()
    (task,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "lm-eval.md").read_text(), re.DOTALL)
    (folder / "tasks" / "capitals.yaml").write_text(task)
    options = [*QUICK["run"].split(), "--out", str(folder / "mwork-results")]
    assert main(["run", "--model", str(tiny_folder), *options]) == 0
    return folder


def _texts(lang):
    corpus = mw.own_corpus(lang)
    return [*corpus.detection, *corpus.held_out]


@pytest.fixture(scope="module")
def names(folder, tiny_folder):
    """What the pages' programs take for given."""
    model = mw.load_model(tiny_folder, dtype="float32")
    texts = {lang: [text[:60] for text in _texts(lang)[:3]] for lang in ("en", "de", "fr")}
    scores = {lang: mw.score_neurons(model, texts[lang]) for lang in texts}
    sets = mw.select_neurons(scores, rule="top_fraction:0.25")
    shares = np.full((model.config.num_layers, 4), 0.25, np.float32)
    minus = mw.held_out_loss(model, texts["de"], mw.NeuronMask.keep_all(model.config)).scores
    return {
        "mw": mw,
        "model": model,
        "texts": texts,
        "other_texts": texts["de"],
        "held_out": texts,
        "documents": texts["de"] * 4,
        "english": texts["en"],
        "tokens": np.asarray([model.tokenizer(texts["de"][0])["input_ids"][:24]]),
        "scores": scores,
        "of_a_mixture": {lang: replace(own, routed=shares) for lang, own in scores.items()},
        "vectors": mw.language_vectors(None, scores),
        "german": sets["de"],
        "french": sets["fr"],
        "mask": mw.NeuronMask.keep_all(model.config).drop(sets["de"]),
        "prompts": ["Wie geht", "Wo ist"],
        "contexts": ["Wie geht"],
        "continuations": [" es"],
        **dict.fromkeys(("before_en", "before_de", "after_en", "after_de"), minus),
    }


@pytest.fixture
def as_a_reader(folder, tiny_folder, monkeypatch):
    """In the folder, with the tiny model for every model by name and one device for a mesh."""
    load_model, make_mesh = mw.load_model, mw.make_mesh
    known = ("gemma3-270m", "mistralai/Mistral-7B-v0.1")

    def load(source, **options):
        assert source in known, f"which model is {source}?"
        return load_model(tiny_folder, **{"dtype": "float32", **options})

    monkeypatch.chdir(folder)
    monkeypatch.setattr(mw, "load_model", load)
    monkeypatch.setattr(mw, "make_mesh", lambda shape: make_mesh(dict.fromkeys(shape, 1)))


def run_python(page, codes, names):
    """The programs of a page, one after the other, as in one session. `codes` may be changed ones."""
    space = dict(names)
    for code in codes:
        for ours, tiny in INSTEAD.items():
            code = code.replace(ours, tiny)
        exec(compile(code, page, "exec"), space)
    return space


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_programs_run(page, as_a_reader, names):
    run_python(page, blocks(page, "python"), names)


def test_what_is_put_in_place_of_something_is_on_a_page():
    everything = "".join(code for page in WITH_PYTHON for code in blocks(page, "python"))
    assert [ours for ours in INSTEAD if ours not in everything] == []
    texts = [command.text for command in WHOLE]
    assert [part for part in ONLY_PARSED if not any(part in text for text in texts)] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_exist(page):
    for command in commands(page):
        check(command)


@pytest.mark.slow
@pytest.mark.parametrize("page", list(dict.fromkeys(command.page for command in RUN)))
def test_the_commands_run(page, as_a_reader, tiny_folder, capsys):
    """Those of a page one after the other, as a later one may read what an earlier one wrote."""
    for command in (command for command in RUN if command.page == page):
        program, name, *words = shlex.split(command.text)
        assert program == "mwork"
        words = [{"40": "12", "400": "12"}.get(word, word) for word in words]
        quick = QUICK.get(name, "").split() + ([] if name in WITHOUT_MODEL else ["--model", str(tiny_folder)])
        added = [word for pair in zip(quick[::2], quick[1::2], strict=True) if pair[0] not in words for word in pair]
        assert main([name, *words, *added]) == 0, f"{command.text}: {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mwork run --modell tiny", "unrecognized arguments: --modell"),
        ("mwork find", "invalid choice: 'find'"),
        ("mwork select scored --mode minus_german", "minus_german"),
        ("python scripts/bench.py detect --jsn", "no --jsn"),
        ("python scripts/none.py", "no such file"),
        ("pip install 'mwork-jax[everything]'", "no such extra"),
        ("frobnicate", "what is frobnicate"),
    ],
)
def test_a_wrong_command_is_seen(text, reason):
    with pytest.raises((InputError, AssertionError), match=re.escape(reason)):
        check(Command("a page", text, True))


@pytest.mark.slow
def test_a_wrong_name_is_seen(as_a_reader, names):
    (code,) = blocks("README.md", "python")
    for wrong in (code.replace("select_neurons", "choose_neurons"), code.replace("rule=", "rules=")):
        with pytest.raises((AttributeError, TypeError)):
            run_python("README.md", [wrong.replace(":32]", ":3]")], names)


def test_an_option_in_a_sentence_is_looked_up():
    with pytest.raises(AssertionError, match="no --topologie"):
        check(Command("a page", "mwork plan --topologie v5e:4x4", False))
