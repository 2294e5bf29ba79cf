"""Item by item: this project's model in lm-evaluation-harness against the harness's own `hf` on the same weights.

    python scripts/lm_eval_parity.py --model gemma3-270m

Six kinds of task, from tests/data/lm_eval: multiple choice, few-shot, generation with filters, rolling perplexity, a
metric of a task's own, and a chat template. `hf` reads the folder that `mw.save_folder` writes, both in float32. Its
softmax is asked for in float64: torch's own of float32, over a vocabulary of 262,144, is off by 3e-5 nats per token.
Needs `pip install 'mwork-jax[lm-eval]' torch accelerate`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import mwork_jax as mw
from mwork_jax.evaluate.lm_eval_host import lm_eval_tasks
from mwork_jax.evaluate.lm_eval_model import MworkLM

TASKS = Path(__file__).parent.parent / "tests" / "data" / "lm_eval"
KINDS = {
    "multiple choice": "mwork_choice",
    "few-shot": "mwork_fewshot",
    "generation with filters": "mwork_sums",
    "rolling perplexity": "mwork_rolling",
    "a metric of its own": "mwork_endings",
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MOST_NATS = 1e-4


def samples_of(lm: Any, chat: bool) -> dict[str, list[dict[str, Any]]]:
    """{task: what the harness logs of each item}."""
    from lm_eval.evaluator import evaluate

    tasks = lm_eval_tasks(tuple(KINDS.values()), TASKS)
    for task in tasks.tasks.values():
        task.set_fewshot_seed(seed=1234)
    options = {"apply_chat_template": chat, "fewshot_as_multiturn": chat, "bootstrap_iters": 0}
    found: Any = evaluate(lm=lm, task_dict=tasks.loaded, **options)
    return found["samples"]


def compared(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> tuple[float, int]:
    """The largest difference in nats over the items of a task, and how many answers differ in text or in what the model
    would say itself."""
    most, other = 0.0, 0
    for a, b in zip(ours, theirs, strict=True):
        if a["arguments"] != b["arguments"] and "until" not in str(a["arguments"]):
            raise ValueError(f"item {a['doc_id']}: the two were asked different things")
        for one, two in zip(chain(*a["resps"]), chain(*b["resps"]), strict=True):
            if isinstance(one, str):
                other += one != two
            else:
                (nats, *greedy), (nats_too, *greedy_too) = (r if isinstance(r, tuple) else (r,) for r in (one, two))
                most, other = max(most, abs(nats - nats_too)), other + (greedy != greedy_too)
    return most, other


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = parser.parse_args()
    from lm_eval.models import huggingface

    os.chdir(TASKS)  # the tasks name their data by file
    model, rows = mw.load_model(args.model, dtype="float32"), []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        mw.save_folder(model, folder)
        ours = MworkLM(model)
        hf_model: Any = huggingface.HFLM  # its decorator hides it from type checkers
        theirs = hf_model(pretrained=folder, device="cpu", dtype="float32", softmax_dtype="float64", batch_size=4)
        for lm in (ours, theirs):
            lm.tokenizer.chat_template = lm.tokenizer.chat_template or TEMPLATE
        for chat in (False, True):
            a, b = samples_of(ours, chat), samples_of(theirs, chat)
            for kind, task in KINDS.items():
                nats, other = compared(a[task], b[task])
                rows.append({"kind": kind, "chat": chat, "items": len(a[task]), "nats": nats, "different": other})
    for row in rows:
        kind = f"{row['kind']}{', chat template' if row['chat'] else ''}"
        line = f"{kind}: {row['items']} items, at most {row['nats']:.1e} nats apart, {row['different']} answers differ"
        print(line, file=sys.stderr if args.json else sys.stdout)
    same = all(row["nats"] <= MOST_NATS and not row["different"] for row in rows)
    if args.json:
        print(json.dumps({"model": args.model, "same": same, "rows": rows}))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
