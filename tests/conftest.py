"""Fixtures that several test files share."""

import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# The files that take longest, the longest first. With `--dist loadgroup --no-loadscope-reorder`, each file goes to one
# worker, in this order, so that module fixtures are made once and the workers end at about the same time. Slow tests
# come after all others.
LONGEST = (
    "runtime/test_distributed.py",
    "test_sharding.py",
    "evaluate/test_table_run.py",
    "enhance/test_tune.py",
    "test_intervention.py",
    "detect/test_importance.py",
    "docs/test_snippets.py",
    "docs/test_notebooks.py",
    "cli/test_run.py",
    "model/test_generate.py",
    "enhance/test_export.py",
    "detect/test_scores.py",
    "model/test_slots.py",
    "detect/test_attribution.py",
    "test_steering.py",
    "model/test_decoder.py",
    "kernels/test_pallas.py",
    "cli/test_kills.py",
    "test_real_models.py",
    "kernels/test_qk_importance.py",
    "lens/test_logit_lens.py",
    "docs/test_site.py",
    "enhance/test_table6.py",
    "test_wheel.py",
    "report/test_browser.py",
)

COMPILED_IN_FULL = (
    "kernels/test_pallas.py",
    "test_real_models.py",
    "plan/test_plan.py",
    "plan/test_gpu.py",
    "scripts/test_compiled.py",
)
SLOW_UNTIL = "MWORK_SLOW_UNTIL"  # seconds since 1970: no slow test begins later; .ci/run sets it
_FEWER_PASSES = "JAX_DISABLE_MOST_OPTIMIZATIONS"
_FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"  # XLA's newer way to write a fusion's code, through MLIR

# Long sums of tiny float32 models should not depend on how many threads a machine has.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tracing makes objects by the million and few cycles: looking for cycles every 700 of them is a twentieth of the suite.
gc.set_threshold(200_000, 50, 1_000)
MOST_MAPPINGS = 25_000  # of memory; Linux ends a process that asks for more than vm.max_map_count, 65,530


def pytest_configure(config):
    """What one process of the suite has compiled, the others load: the other worker and every process that a test
    starts would compile the same programs again, two thirds of the time that a small `mwork evaluate` takes. LLVM's
    expensive passes are left out, and XLA's newer emitters, which take twice as long as its older ones: tiny models
    take longer to compile than to run."""
    if hasattr(config, "workerinput"):
        return
    if os.environ.setdefault(_FEWER_PASSES, "1") == "1":
        os.environ["XLA_FLAGS"] = " ".join([f"--{_FUSION_EMITTERS}=false", os.environ.get("XLA_FLAGS", "")]).strip()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="mwork-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="module", autouse=True)
def passes_of_the_compiler(request):
    """All passes for real models, which take longer to run than to compile, and for plans, which report the program."""
    if request.path.relative_to(TESTS).as_posix() not in COMPILED_IN_FULL:
        yield
        return
    import jax
    from jax._src import compiler  # XLA reads its flags once in a process: these programs have options of their own

    options_of = compiler.get_compile_options

    def with_emitters(*args, env_options_overrides=None, backend=None, **others):
        if backend is not None and backend.platform == "cpu":
            env_options_overrides = {_FUSION_EMITTERS: True, **(env_options_overrides or {})}
        return options_of(*args, env_options_overrides=env_options_overrides, backend=backend, **others)

    fewer = os.environ[_FEWER_PASSES] == "1"
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if _FUSION_EMITTERS not in flag]
    jax.config.update("jax_disable_most_optimizations", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_FEWER_PASSES, "0")
        patch.setenv("XLA_FLAGS", " ".join(flags))
        patch.setattr(compiler, "get_compile_options", with_emitters)
        yield
    jax.config.update("jax_disable_most_optimizations", fewer)


@pytest.fixture(scope="module", autouse=True)
def programs_of_other_files():
    """Programs are dropped before there are too many: each that XLA compiles for a CPU maps pages of its own, and a
    process that may map no more dies of a segmentation fault wherever it happens to compile."""
    mappings = Path("/proc/self/maps")
    if "jax" in sys.modules and mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        sys.modules["jax"].clear_caches()
        gc.collect()


def pytest_collection_modifyitems(items):
    """Marks what needs torch, which makes the tiny models; the files that take longest come first, slow tests last."""
    uses_torch = {path: "support.tiny" in path.read_text(encoding="utf-8") for path in {item.path for item in items}}
    for item in items:
        if uses_torch[item.path] or "tiny_folder" in item.fixturenames:
            item.add_marker(pytest.mark.torch)
        slow = " slow" if item.get_closest_marker("slow") else ""
        item.add_marker(pytest.mark.xdist_group(item.path.relative_to(TESTS).as_posix() + slow))
    place = {TESTS / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda i: (i.get_closest_marker("slow") is not None, place.get(i.path, len(LONGEST))))


def pytest_runtest_setup(item):
    """Where a run has a limit of time, what is slow is not begun near its end: machines differ in speed several times.
    Each is printed, and `bash scripts/test.sh -m slow` runs them all."""
    until = os.environ.get(SLOW_UNTIL)
    if until and time.time() > float(until) and item.get_closest_marker("slow"):
        pytest.skip("too late for a slow test on a machine as slow as this one")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A small random Llama with a byte-level tokenizer, as a folder in Hugging Face layout."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from support.tiny import hf_model

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *sorted(alphabet)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path_factory.mktemp("tiny-llama")
    hf_model("llama", 2, vocab_size=len(vocabulary), num_hidden_layers=4, max_position_embeddings=4096).save_pretrained(
        folder
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder
