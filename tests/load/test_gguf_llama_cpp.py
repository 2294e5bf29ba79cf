"""The files of these tests in llama.cpp itself: that it computes what Hugging Face does shows that they are written as
its converter writes them; and that it cuts text as this package does. It runs where `cyllama` is installed.
"""

import json
import unicodedata

import numpy as np
import pytest

from mwork_jax.load.gguf_tokenizer import build_tokenizer
from support.gguf_cases import CASES, MISTRAL_SMALL
from support.gguf_writing import CONTROL, NORMAL, byte_level_metadata, model_parts, write_gguf
from support.tiny import hf_model, tokens, torch

llama_cpp = pytest.importorskip("cyllama.llama.llama_cpp", reason="needs llama.cpp: pip install cyllama")

LONGER = {"max_position_embeddings": 2400, "original_max_position_embeddings": 600}
OLMO3 = {"num_hidden_layers": 4, "layer_types": None}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
# What llama.cpp computes otherwise, and so is not asked of it: it goes without the windows of Llama's and Phi's files,
# rounds the ends of YaRN's ramp, has norms on Cohere's queries from 64 layers on, and a pattern of OLMo 3's own.
SETTINGS = {
    "mistral": {"sliding_window": None},
    "phi3": {"sliding_window": None},
    "phi3-partial": LONGER,
    "gpt-oss": {"rope_parameters": YARN | {"truncate": True}},
    "cohere-norm": {"num_hidden_layers": 64},
    "olmo3": OLMO3,
}
TEXTS = [
    "The quick fox didn't jump 12,345.67 times.",
    "Straße über die Brücke — schöne Grüße!",
    "Москва 今天天气很好 สวัสดี مرحبا",
    "one\n\n\ntwo\n\tthree\r\nfour\n",
    "  two  spaces,   three    ",
    "x1234 IT'S it's // 007 ½ ४५ emoji 😀👍🏽",
]
# Its GELU is a table of 16-bit floats.
TABLES = {"bloom", "gemma", "gemma2", "gemma3"}


def opened(path, count: int):
    """llama.cpp's model of a file; the bindings ask it for the size of its vocabulary, which it does not have."""
    settings = llama_cpp.LlamaModelParams()
    settings.n_gpu_layers = 0
    return type("Model", (llama_cpp.LlamaModel,), {"n_vocab": count})(str(path), settings, verbose=False)


def logits(path, ids: np.ndarray, count: int) -> np.ndarray:
    """Of every token, [time, vocabulary], with keys and values kept in float32."""
    settings = llama_cpp.LlamaContextParams()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = settings.flash_attn_type = 0
    context = llama_cpp.LlamaContext(opened(path, count), settings, verbose=False)
    batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    for position, token in enumerate(ids.tolist()):
        batch.add(token, position, [0], True)
    context.decode(batch)
    return np.stack([np.asarray(context.get_logits_ith(i), np.float32) for i in range(len(ids))])


def as_lists(metadata: dict) -> dict:
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metadata.items()}


@pytest.mark.parametrize(("family", "case"), [*CASES.items(), MISTRAL_SMALL])
def test_llama_cpp_computes_the_same(family, case, tmp_path):
    arch, settings, extra = case
    vocabulary = as_lists(byte_level_metadata())
    count = len(vocabulary["tokenizer.ggml.tokens"])
    changed = SETTINGS.get(family, {}) if arch != "mistral3" else {}
    hf = hf_model(family, 2, **settings | changed, vocab_size=count)
    metadata, tensors = model_parts(hf, arch)
    path = write_gguf(tmp_path / "m.gguf", arch, metadata | extra | vocabulary, tensors)
    ids = tokens(1, 40)[0]
    with torch.no_grad():
        expected = hf(torch.tensor(ids[None], dtype=torch.long)).logits.numpy()[0]
    error = np.abs(logits(path, ids, count) - expected).max() / max(1, np.abs(expected).max())
    assert error < (1e-3 if family in TABLES else 1e-5)


@pytest.mark.parametrize(
    "name",
    ["gpt-2", "llama-bpe", "qwen2", "smollm", "refact", "starcoder", "command-r", "dbrx", "smaug-bpe", "bloom"],
)
def test_llama_cpp_cuts_text_as_this_does(name, tmp_path):
    """With merges of any text, across words too. tekken, gpt-4o and tiny_aya are not among them: of their patterns
    llama.cpp has near ones, which take no mark for a part of a word, and digits beside letters for a number."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = byte_level
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=byte_level.alphabet(), show_progress=False)
    trained.train_from_iterator(TEXTS * 3, trainer)
    merges = [" ".join(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    pieces = sorted(trained.get_vocab(), key=trained.token_to_id)
    made = byte_level_metadata(pre=name, tokens=["<|end|>", *pieces], merges=merges, bos_token_id=0)
    made["tokenizer.ggml.token_type"] = np.array([CONTROL, *[NORMAL] * len(pieces)], np.int32)
    metadata, tensors = model_parts(hf_model("llama", 2, vocab_size=len(pieces) + 1), "llama")
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata | as_lists(made), tensors)
    model, ours = opened(path, len(pieces) + 1), build_tokenizer(made, "file")
    theirs = model.get_vocab()  # a part of the model, which has to stay
    for text in (unicodedata.normalize("NFC", text) for text in TEXTS):
        assert list(theirs.tokenize(text, True, False)) == ours(text)["input_ids"], text
