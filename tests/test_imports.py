"""`import mwork_jax` takes what most programs need; the rest is imported where it is used."""

import subprocess
import sys

import pytest

from support.paths import ROOT

# Each takes from a tenth of a second to several seconds to import, and most programs need none of them.
LATE = (
    "datasets", "fsspec", "huggingface_hub", "jax.experimental.pallas", "lingua", "matplotlib", "orbax", "sacrebleu",
    "scipy", "tensorflow", "tokenizers", "torch", "transformers",
)  # fmt: skip


@pytest.mark.processes
def test_import_leaves_out_what_is_slow():
    script = f"import sys, mwork_jax; print(*[name for name in {LATE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
