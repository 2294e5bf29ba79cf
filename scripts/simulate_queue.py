"""How full the slots are on 1, 8 and 256 chips, from the lengths of real answers.

    python scripts/simulate_queue.py --data datasets

Gemma 3 270M answers prompts of XQuAD and MGSM under a few masks; the lengths of these answers are drawn again for whole
data sets under many masks, and the queue is worked off as `mwork evaluate` does it: rows are filled again when one in
eight is empty, chips step together, and at the end nobody waits. Fill: of the steps that the rows took, how many gave a
token. The bound is what no queue can beat on 256 chips: no answer is done before the longest one's tokens are.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Sequence

import numpy as np

import mwork_jax as mw
from benchmarks.sweep import sets_of_stages
from mwork_jax.evaluate.table_run import prepare
from mwork_jax.evaluate.tasks import TASKS
from mwork_jax.model.decode_queue import REFILL, STEPS_KNOWN, decoded_pairs
from mwork_jax.model.slot_sizes import ACCELERATOR
from mwork_jax.settings import TableSettings

CHIPS, SLOTS = (1, 8, 256), ACCELERATOR.decoded
MASKS = 24  # as many as Tables 2 to 5 have for a language: the original, its own rows, random ones
WORK = (("xquad", ("en", "de", "zh"), 0, 1190), ("mgsm", ("en", "de"), 2, 250))  # task, languages, shots, items


def lengths_of(model: mw.Model, task: str, language: str, shots: int, data: str | None, masks: int) -> np.ndarray:
    """Tokens of real answers, int [prompts, masks]."""
    folder = None if data is None else f"{data}/{task}"
    work = prepare(
        TASKS[task], folder, TableSettings(("en", language) if language != "en" else ("en", "de"), 64, shots=shots)
    )[language]
    prompts = [model.encode_prompt(prompt) for prompt in work.prompts]
    keep = mw.NeuronMask.keep_all(model.config)
    off = [keep, *(keep.drop(own) for own in sets_of_stages(model.config, masks - 1))]
    found = np.zeros((len(prompts), masks), int)
    asked = work.task
    stop = tuple(asked.stop(language))
    for pair, tokens in decoded_pairs(model, prompts, off, asked.max_new_tokens, stop, 8192, None):
        found[pair.prompt, pair.mask] = tokens.size
    return found


def fill_of(lengths: Sequence[int], groups: int) -> float:
    """The share of the rows' steps that give a token, for answers that wait in this order."""
    queue, slots, rows = deque(lengths), ACCELERATOR.slots, ACCELERATOR.decoded
    left = np.zeros((groups, rows), int)
    waiting = [deque[int]() for _ in range(groups)]
    taken, refill = 0, max(1, groups * rows // REFILL)
    while queue or any(waiting) or left.any():
        seated = [int(count) for count in (left > 0).sum(axis=1)]
        if any(len(own) < rows - sitting for own, sitting in zip(waiting, seated, strict=True)):
            while queue and any(len(own) < slots - sitting for own, sitting in zip(waiting, seated, strict=True)):
                for number, own in enumerate(waiting):
                    share = -(-len(queue) // (groups - number))
                    own.extend(queue.popleft() for _ in range(min(share, slots - seated[number] - len(own))))
        for number, row in zip(*np.nonzero(left == 0), strict=True):
            if waiting[number]:
                left[number, row] = waiting[number].popleft()
        going = np.sort(left[left > 0])
        enough = min(refill, going.size) if queue or any(waiting) else going.size  # rows that have to end
        steps = min(STEPS_KNOWN, int(going[enough - 1]))
        taken += steps * left.size
        left = np.maximum(left - steps, 0)
    return sum(lengths) / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with xquad and mgsm (default: the project's own)")
    parser.add_argument("--masks", type=int, default=4, help="under which answers are measured (default: 4)")
    args = parser.parse_args()
    model, random = mw.load_model("gemma3-270m"), np.random.default_rng(0)
    print(f"{'answers':<12}{'mean':>7}{'longest':>9}{'rows':>8}" + "".join(f"{c:>5} chips" for c in CHIPS) + "   bound")
    for task, languages, shots, items in WORK:
        for language in languages:
            measured = lengths_of(model, task, language, shots, args.data, args.masks)
            rows = measured[random.integers(0, len(measured), items)][:, random.integers(0, args.masks, MASKS)]
            order = [int(length) for length in rows.ravel()]
            fills = [fill_of(order, chips) for chips in CHIPS]
            bound = sum(order) / max(max(order) * CHIPS[-1] * SLOTS, sum(order))
            print(
                f"{task + ' ' + language:<12}{np.mean(order):>7.1f}{max(order):>9}{len(order):>8}"
                + "".join(f"{fill:>11.2f}" for fill in fills)
                + f"{bound:>8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
