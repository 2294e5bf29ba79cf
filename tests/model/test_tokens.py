"""What a tokenizer or a chat template adds to a text, and what is made of it."""

import json
import shutil
import time

import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.corpus import encoded, measured_token_mask
from mwork_jax.load.gguf_tokenizer import build_tokenizer
from mwork_jax.model import tokens
from mwork_jax.model.tokens import added_tokens, byte_count, chat_prompt
from mwork_jax.neurons import NeuronMask
from support.gguf_writing import sentencepiece_metadata

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def with_eos(tiny_folder, tmp_path_factory):
    """The tiny model with a tokenizer that puts EOS behind every text."""
    return changed(tiny_folder, tmp_path_factory.mktemp("eos") / "model", "<s> $A </s>")


def changed(tiny_folder, folder, template, **config):
    from tokenizers import Tokenizer, processors

    shutil.copytree(tiny_folder, folder)
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    whole.save(str(folder / "tokenizer.json"))
    body = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**body, **config}))
    return mw.load_model(folder, dtype="float32")


def test_what_a_tokenizer_adds_is_known(tokenizer, with_eos):
    assert added_tokens(tokenizer) == ((BOS,), ())
    assert added_tokens(with_eos.tokenizer) == ((BOS,), (EOS,))
    assert added_tokens(None) == ((), ())


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_bytes_of_tokens_that_end_within_a_character(kind, tokenizer):
    """Each prefix of a text's tokens stands for a prefix of its bytes."""
    if kind == "byte fallback":
        tokenizer = build_tokenizer(sentencepiece_metadata(add_space_prefix=False), "file")
    text = "😀 hello 道é world"
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])
    counts = [byte_count(tokenizer, ids[:i], special=False) for i in range(1, len(ids) + 1)]
    assert counts[:6] == [1, 2, 3, 4, 5, 6]
    assert counts == sorted(set(counts))
    assert counts[-1] == len(text.encode())


def test_bytes_of_a_document_that_begins_or_is_cut_within_a_character(tiny_folder, tmp_path):
    """Without BOS, the first of four bytes is not predicted: 15 of "😀 hello world" are."""
    model = changed(tiny_folder, tmp_path / "model", "$A")
    (whole,) = encoded(model, ["😀 hello world"], 64)
    (cut,) = encoded(model, ["😀 hello 道"], 12)
    assert (whole.bytes, cut.bytes) == (15, 11)


def test_a_prompt_ends_where_its_text_ends(tiny_folder, with_eos):
    plain = mw.load_model(tiny_folder, dtype="float32")
    keep = NeuronMask.keep_all(plain.config)
    assert with_eos.encode("hello")[-1] == EOS
    for prompt in ("hello the", "hello </s>"):
        np.testing.assert_array_equal(with_eos.encode_prompt(prompt), plain.encode(prompt))
    assert with_eos.encode_prompt("hello </s>")[-1] == EOS, "what the user typed stays"
    prompts = ["hello the", "x"]
    assert mw.generate(with_eos, prompts, keep, max_new_tokens=3) == mw.generate(plain, prompts, keep, max_new_tokens=3)
    ours, expected = (mw.log_likelihood(model, ["hello the"], [" world"], keep) for model in (with_eos, plain))
    np.testing.assert_allclose(ours.nats, expected.nats, atol=1e-5)


def test_the_bos_is_the_one_that_the_tokenizer_adds(tiny_folder, tmp_path):
    """Named otherwise in config.json, it would count in the norms and take the first character's bytes."""
    plain = mw.load_model(tiny_folder, dtype="float32")
    other = changed(tiny_folder, tmp_path / "model", "<s> $A", bos_token_id=0)
    assert other.config == plain.config
    assert other.key["weights"] == plain.key["weights"]


def test_no_token_that_the_tokenizer_puts_in_front_is_the_document_s(tiny_folder, tmp_path, monkeypatch):
    model = changed(tiny_folder, tmp_path / "model", "<s> </s> $A")
    (document,) = encoded(model, ["hello"], 64)
    assert document.tokens[:2].tolist() == [BOS, EOS]
    assert document.bytes == 5
    rows = np.stack([document.tokens, np.roll(document.tokens, -1), np.append(BOS, document.tokens[2:]).repeat(2)[:7]])
    mask = measured_token_mask(model, rows, np.asarray([7, 7, 6]), include_bos=False)
    assert mask.tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0, 1, 1, 1, 1, 1, 0]]
    with pytest.raises(mw.InputError, match="document 1 is only the 2 tokens that the tokenizer puts in front"):
        list(encoded(model, ["hello"], 2))
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ bos_token }}</s>" + CHAT)
    assert model.chat_prompt("Q") == "[user] Q\n[model] "


CHAT = "[user] {{ messages[0]['content'] }}\n[model] "
TEMPLATES = {
    "a list of parts": (
        "{% for part in messages[0].content if part.type == 'text' %}[user] {{ part.text }}{% endfor %}",
        "[user] Q?",
    ),
    "today's date": ("{{ strftime_now('%d %b %Y') }} {{ date_string }} {{ messages[0].content }}", None),
}


def test_a_template_that_reads_parts_gets_parts(tokenizer, monkeypatch):
    template, expected = TEMPLATES["a list of parts"]
    monkeypatch.setattr(tokenizer, "chat_template", template)
    assert chat_prompt(tokenizer, "Q?") == expected


def test_the_date_is_the_same_on_every_day(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES["today's date"][0])
    assert chat_prompt(tokenizer, "Q?") == "26 Jul 2024 26 Jul 2024 Q?"


FORMATS = [
    *(f"%{code}" for code in "aAbBcCdDeFgGhHIjmMpRSTuUVwWxXyYzZ"),
    "%-d %B %Y",
    "%%d %d%%",
    "d' 'm",
    "at %-I o'clock",
]


@pytest.mark.parametrize("form", ["strftime_now({})", "strftime_now ( format={} )", "f({})"])
def test_every_code_of_a_date_is_filled_as_transformers_does(form, tokenizer, monkeypatch):
    from transformers.utils import chat_template_utils

    class Clock:
        @staticmethod
        def now():
            return tokens.CHAT_DATE

    computed = form == "f({})"
    macro = "{% macro f(x) %}{{ strftime_now(x) }}{% endmacro %}" if computed else ""
    for written in FORMATS[:-4] if computed else FORMATS:
        template = f"{macro}{{{{ {form.format(json.dumps(written))} }}}} {{{{ messages[0].content }}}}"
        monkeypatch.setattr(tokenizer, "chat_template", template)
        ours = chat_prompt(tokenizer, "Q?")
        with monkeypatch.context() as patch:
            patch.setattr(chat_template_utils, "datetime", Clock)
            chat = [{"role": "user", "content": "Q?"}]
            assert ours == tokenizer.apply_chat_template(chat, tokenize=False), written


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_seconds_are_the_same_in_every_time_zone(zone, tokenizer, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        monkeypatch.setattr(tokenizer, "chat_template", "{{ strftime_now('%s') }} {{ messages[0].content }}")
        assert chat_prompt(tokenizer, "Q?") == "1721952000 Q?"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("condition", ["raise_exception('no text')", "1 // 0"])
def test_a_template_that_fails_on_text_gets_parts(condition, tokenizer, monkeypatch):
    check = f"{{% if messages[0].content is string %}}{{{{ {condition} }}}}{{% endif %}}"
    monkeypatch.setattr(tokenizer, "chat_template", check + TEMPLATES["a list of parts"][0])
    assert chat_prompt(tokenizer, "Q?") == "[user] Q?"


def test_chance_that_changes_nothing_is_allowed(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ ['a'] | random }} {{ messages[0].content }}")
    assert chat_prompt(tokenizer, "Q?") == "a Q?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ['a', 'b'] | random }}{{ messages[0].content }}", "another prompt each time, by chance"),
        ("{{ lipsum() }}{{ messages[0].content }}", "another prompt each time, by chance"),
        ("{{ raise_exception('') }}", r"fails \(TemplateError\)"),
        (
            "{% if messages[0].content is string %}{{ raise_exception('first') }}{% endif %}{{ 1 // 0 }}",
            r"fails \(first\)",
        ),
        ("{% if messages[0].content is string %}no{% else %}{{ 1 // 0 }}{% endif %}", "leaves the prompt out"),
        ("{{ messages[0].content[:1] }}", "leaves the prompt out"),  # of a list of parts, the list as Python prints it
        ("{% set f = '%Q' %}{{ strftime_now(f) }}{{ messages[0].content }}", "fails .*a date in the format %Q"),
        ("{{ raise_exception('no system prompt') }}", "fails .*no system prompt"),
        ("{% if %}", "the model's chat template fails"),
        ("{{ 1 // 0 }}", "the model's chat template fails"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the model's chat template fails"),
        ("{{ messages[0].absent.absent }}", "the model's chat template fails"),
        ("nothing of it", "leaves the prompt out, or changes it"),
        ("{{ messages[0].content | upper }}", "leaves the prompt out, or changes it"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "the model's chat template takes over 1 s",
        ),
        ("{{ 'a' * 10000000000 }}{{ messages[0].content }}", r"fails \(MemoryError\)"),
        ("{{ 'a'.center(2000000) }}{{ messages[0].content }}", "adds 2000000 characters"),
        ("{{ 9 ** 9 ** 9 > 1 }}{{ messages[0].content }}", r"computes powers \(\*\*\)"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template, message, tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "_TEMPLATE_SECONDS", 1)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(mw.InputError, match=message) as error:
        chat_prompt(tokenizer, "Why?")
    assert "\n" not in str(error.value)


def test_a_mark_in_front_of_a_template_is_no_part_of_the_prompt(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "\ufeff" + CHAT)
    assert chat_prompt(tokenizer, "Q") == "[user] Q\n[model] "


def test_the_template_s_own_bos_is_not_a_second_one(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ bos_token }}" + CHAT)
    assert chat_prompt(tokenizer, "Q") == "[user] Q\n[model] "
