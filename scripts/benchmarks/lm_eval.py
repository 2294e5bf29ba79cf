"""Tasks of lm-evaluation-harness under eight masks: in one go, against one run of the harness per mask, with this
project's model and with the harness's own `hf` whose weights are zeroed for each.

Gemma 3 270M in float32 on the project's own questions about passages: multiple choice of four answers, and answers of
12 tokens at most. All three sides go through the same tasks of the harness, requests, filters and metrics included.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mwork_jax as mw
from benchmarks.models import torch_checkpoint, zeroed
from benchmarks.sweep import sets_of_stages
from mwork_jax.evaluate.table_run import prepare
from mwork_jax.evaluate.tasks import TASKS
from mwork_jax.load.packaged import packaged_gguf
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.progress import Progress
from mwork_jax.settings import LmEvalSettings, TableSettings

LANGUAGES = ("en", "de")
NAMES = ("bench_choice", "bench_answer")
MASKS, ITEMS = 8, 4
_HEAD = """dataset_path: json
dataset_kwargs: {data_files: items.jsonl}
test_split: train
doc_to_text: "{{prompt}}"
num_fewshot: 0
"""
_TASKS = {
    "bench_choice": 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
    "bench_answer": 'output_type: generate_until\ndoc_to_target: "{{choices[answer]}}"\n'
    'generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}\n'
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
}


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    from lm_eval.evaluator import evaluate
    from lm_eval.models import huggingface

    from mwork_jax.evaluate.lm_eval_host import LmEvalCondition, lm_eval_tasks, run_lm_eval
    from mwork_jax.evaluate.lm_eval_model import MworkLM

    model = mw.load_model("gemma3-270m", dtype="float32")
    sets = sets_of_stages(model.config, MASKS - 1)
    keep = mw.NeuronMask.keep_all(model.config)
    masks = [keep, *(keep.drop(own) for own in sets)]
    conditions = [LmEvalCondition("own" if i else "original", m, f"x-{i}", "") for i, m in enumerate(masks)]
    hf = torch_checkpoint(packaged_gguf("gemma3-270m"))
    hf_model: Any = huggingface.HFLM  # its decorator hides it from type checkers
    theirs = hf_model(pretrained=hf, tokenizer=model.tokenizer, batch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        _write_tasks(Path(folder))

        def loaded() -> Any:
            return lm_eval_tasks(NAMES, folder)

        def at_once() -> None:
            with tempfile.TemporaryDirectory() as out:
                settings, quiet = LmEvalSettings(NAMES), Progress(1, quiet=True)
                run_lm_eval(model, loaded(), conditions, settings, ResultCache(out), progress=quiet)

        def one_by_one(count: int = MASKS) -> None:
            tasks = loaded()
            for mask in masks[:count]:
                evaluate(lm=MworkLM(model, mask), task_dict=tasks.loaded, bootstrap_iters=1000)

        def with_zeroed_weights() -> None:
            tasks = loaded()
            for own in (sets[0].none(), *sets):
                with zeroed(hf, own):
                    evaluate(lm=theirs, task_dict=tasks.loaded, bootstrap_iters=1000)

        at_once()
        one_by_one(2)  # compiles for one mask; PyTorch has nothing to compile
        sides = (at_once, one_by_one, with_zeroed_weights)
        times = [[_clocked(side) for side in sides] for _ in range(rounds)]
    for place, name in ((1, "one run per mask"), (2, "hf, weights zeroed")):
        yield {
            "benchmark": "lm-eval", "model": "Gemma 3 270M", "what": f"{MASKS} masks x {2 * ITEMS} items",
            "dtype": "float32", "theirs": name, **_compared([(row[0], row[place]) for row in times]),
        }  # fmt: skip


class _Clocked(NamedTuple):
    seconds: float
    processor: float  # seconds of the processor, which other work on the machine leaves alone


def _clocked(side: Callable[[], None]) -> _Clocked:
    begin, processor = time.perf_counter(), time.process_time()
    side()
    return _Clocked(time.perf_counter() - begin, time.process_time() - processor)


def _compared(pairs: Sequence[tuple[_Clocked, _Clocked]]) -> dict[str, float]:
    """Medians of both sides, and of the ratios pair by pair, theirs / ours, with their range."""
    ratios = sorted(theirs.seconds / ours.seconds for ours, theirs in pairs)
    return {
        "ours_seconds": statistics.median(ours.seconds for ours, _ in pairs),
        "theirs_seconds": statistics.median(theirs.seconds for _, theirs in pairs),
        "ours_processor": statistics.median(ours.processor for ours, _ in pairs),
        "theirs_processor": statistics.median(theirs.processor for _, theirs in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "processor_ratio": statistics.median(theirs.processor / ours.processor for ours, theirs in pairs),
    }


def line(row: dict[str, Any]) -> str:
    sides = f"in one go {row['ours_seconds']:.1f} s, {row['theirs']} {row['theirs_seconds']:.1f} s"
    ratio = f"{row['ratio']:.2f} times as fast ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
    processor = f"{row['processor_ratio']:.2f} by the processor's time ({row['ours_processor']:.1f} s)"
    return f"{row['model']} ({row['dtype']}), {row['what']}: {sides}, {ratio}, {processor}"


def _write_tasks(folder: Path) -> None:
    """Two tasks over the same items: questions whose other choices are the answers to the next ones."""
    evaluations = prepare(TASKS["xquad"], None, TableSettings(LANGUAGES, ITEMS // len(LANGUAGES))).values()
    answers = [item.references[0] for evaluation in evaluations for item in evaluation.items]
    prompts = [prompt for evaluation in evaluations for prompt in evaluation.prompts]
    items = [
        {"prompt": prompt, "choices": [answers[(place + step) % ITEMS] for step in range(4)], "answer": 0}
        for place, prompt in enumerate(prompts)
    ]
    data = folder / "items.jsonl"
    data.write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    for name, rest in _TASKS.items():
        head = _HEAD.replace("items.jsonl", json.dumps(str(data)))
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{rest}", encoding="utf-8")
