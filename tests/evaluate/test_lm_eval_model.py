"""This project's model in lm-evaluation-harness gives what the harness's own `hf` gives, item by item."""

import sys
from importlib import import_module, reload

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.errors import InputError

pytest.importorskip("lm_eval", reason="pip install 'mwork-jax[lm-eval]'")
pytest.importorskip("accelerate", reason="the oracle of these tests is lm-evaluation-harness's hf, which needs it")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from lm_eval_parity import KINDS, MOST_NATS, TASKS, TEMPLATE, compared, samples_of
from mwork_jax.evaluate.lm_eval_model import Decoding, MworkLM
from support.slow_deactivation import random_neurons


def asked(kind, *args):
    return Instance(kind, {}, args, 0, ("made up", 0, 1))


@pytest.fixture(scope="module")
def model(tiny_folder):
    return mw.load_model(tiny_folder, dtype="float32")


@pytest.fixture(scope="module")
def hf(tiny_folder):
    lm = HFLM(pretrained=str(tiny_folder), device="cpu", dtype="float32", softmax_dtype="float64", batch_size=4)
    lm.tokenizer.chat_template = TEMPLATE
    return lm


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_every_kind_of_task_gives_what_hf_gives(chat, model, hf, monkeypatch):
    monkeypatch.chdir(TASKS)
    monkeypatch.setattr(model.tokenizer, "chat_template", TEMPLATE)
    ours, theirs = samples_of(MworkLM(model), chat), samples_of(hf, chat)
    for task in KINDS.values():
        nats, other = compared(ours[task], theirs[task])
        assert nats < MOST_NATS, task
        assert other == 0, task
        assert [one["metrics"] for one in ours[task]] == [one["metrics"] for one in theirs[task]]


def test_long_texts_go_in_windows_and_long_prompts_lose_their_beginning(model, hf, monkeypatch):
    monkeypatch.setattr(hf, "_max_length", 24)
    ours = MworkLM(model, max_length=24)
    texts = [asked("loglikelihood_rolling", text) for text in ("A text of more than one window, and of two.", "Short.")]
    np.testing.assert_allclose(ours.loglikelihood_rolling(texts), hf.loglikelihood_rolling(texts), atol=MOST_NATS)
    pairs = [asked("loglikelihood", "A context of thirty characters", " goes on"), asked("loglikelihood", "", "Begin")]
    for one, two in zip(ours.loglikelihood(pairs), hf.loglikelihood(pairs), strict=True):
        assert one == (pytest.approx(two[0], abs=MOST_NATS), two[1])
    long = [asked("generate_until", "A prompt of thirty characters ", {"until": [], "max_gen_toks": 6})]
    assert ours.generate_until(long) == hf.generate_until(long)


def test_the_harness_finds_it_by_name_and_switches_neurons_off(model, tiny_folder, tmp_path):
    neurons = random_neurons(model.config, share=0.3)
    neurons.save(tmp_path / "de.json")
    arguments = f"pretrained={tiny_folder},dtype=float32,neurons={tmp_path}/de.json,off=under+gen,max_length=64"
    found = get_model("mwork").create_from_arg_string(arguments, {"batch_size": 8, "device": "cpu"})
    split = mw.StageSplit.default(model.config.num_layers)
    off = mw.StageSetting(under=True, gen=True).choose(neurons, split)
    mask = mw.NeuronMask.keep_all(model.config).drop(off)
    pair = [asked("loglikelihood", "Das ist", " gut")]
    assert found.loglikelihood(pair) == MworkLM(model, mask, max_length=64).loglikelihood(pair)
    assert found.loglikelihood(pair) != MworkLM(model).loglikelihood(pair)
    assert found.tokenizer_name == str(tiny_folder).replace("/", "__")


def test_how_answers_are_written():
    assert Decoding.of({"until": "\n"}) == Decoding(256, ("\n",))
    assert Decoding.of({"do_sample": False, "temperature": 0.7, "top_k": 3, "max_tokens": 5}) == Decoding(5, ())
    drawn = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "until": ["a", ""], "num_beams": 1}
    assert Decoding.of(drawn) == Decoding(256, ("a",), 0.5, 0.9)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"num_beams": 4}, "generation_kwargs: num_beams: 4 cannot be done here"),
        ({"temperature": 1.0, "top_k": 3}, "generation_kwargs: top_k: 3 cannot be done here"),
        ({"until": 3}, "generation_kwargs: until is 3"),
        ({"max_gen_toks": 0}, "generation_kwargs: max_gen_toks is 0"),
        ({"max_gen_toks": 5000}, "5000 new tokens asked, the model's context is 4096"),
    ],
)
def test_what_cannot_be_written_is_one_line(options, line, model):
    with pytest.raises(InputError, match=line):
        MworkLM(model).generate_until([asked("generate_until", "A", options)])


def test_answers_end_at_stop_strings_that_are_tokens(model):
    assert model.config.eos_ids == (2,)
    assert MworkLM(model)._ending_at(("\n", "x")) is model
    ending = MworkLM(model)._ending_at(("<s>", "\n"))
    assert (ending.config.eos_ids, model.config.eos_ids) == ((2, 1), (2,))
    assert ending.decoder.embed[...] is model.decoder.embed[...]


def test_wrong_models_and_templates_are_one_line(model):
    with pytest.raises(InputError, match="mask and neurons are both given"):
        MworkLM(model, mw.NeuronMask.keep_all(model.config), neurons=random_neurons(model.config, share=0.1))
    with pytest.raises(InputError, match="off under\\+all: 'all' is not one of all, under"):
        MworkLM(model, neurons=random_neurons(model.config, share=0.1), off="under+all")
    with pytest.raises(InputError, match="no tokenizer"):
        MworkLM(mw.Model(model.decoder, None, "bare"))
    with pytest.raises(InputError, match="no chat template"):
        MworkLM(model).apply_chat_template([{"role": "user", "content": "A"}])
    with pytest.raises(InputError, match="request 1: its continuation has no token"):
        MworkLM(model).loglikelihood([asked("loglikelihood", "A", "")])


def test_without_the_harness_one_line_says_what_to_install(monkeypatch):
    ours = import_module("mwork_jax.evaluate.lm_eval_model")
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(InputError, match=r"pip install 'mwork-jax\[lm-eval\]'"):
        reload(ours)
