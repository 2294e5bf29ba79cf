"""Paired benchmarks: both sides in one run, in turn, on the same weights and inputs.

    python scripts/bench.py forward --json

Every line gives seconds per call of each side (medians), and the median and range of the ratio pair by pair.
"""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks import attribution, contexts, detect, enhance, families, forward, kernels, lm_eval, steer, sweep, tasks

BENCHMARKS = {
    "forward": forward,
    "families": families,
    "detect": detect,
    "attribution": attribution,
    "contexts": contexts,
    "kernels": kernels,
    "sweep": sweep,
    "tasks": tasks,
    "steer": steer,
    "enhance": enhance,
    "lm-eval": lm_eval,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--rounds", type=int, default=7, help="pairs timed (default: 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument(
        "--data",
        help="sweep: XQuAD's files; tasks and steer: a folder with xquad and mgsm (default: the project's own)",
    )
    parser.add_argument("--prompts", type=int, help="tasks: of each language (default: 48)")
    parser.add_argument("--plot", help="detect: write a figure (SVG) there")
    args = parser.parse_args()
    benchmark = BENCHMARKS[args.benchmark]
    own = {name: getattr(args, name) for name in ("data", "plot", "prompts") if getattr(args, name)}
    rows = []
    for row in benchmark.rows(args.rounds, **own):
        rows.append(row)
        print(benchmark.line(row), file=sys.stderr if args.json else sys.stdout, flush=True)
    if args.json:
        print(json.dumps({"benchmark": args.benchmark, "rows": rows}))


if __name__ == "__main__":
    sys.exit(main())
