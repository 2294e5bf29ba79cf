"""Folders of results for tests of the report: what Gemma 3 270M really gave, and parts that are made up."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from mwork_jax.detect.scores import NeuronScores
from mwork_jax.neurons import GROUPS
from support.paths import TEST_DATA

REAL = TEST_DATA / "gemma3-270m-quick"  # mwork run --quick, mwork lens, mwork evaluate: their files
LANGUAGES = ("en", "de", "th")
WIDTHS = dict(zip(GROUPS, (32, 16, 16, 48, 48), strict=True))


def made_scores(languages=LANGUAGES, layers=3, widths=None, model=None, kept=2, documents=4, seed=0):
    """Random scores with ranks and importances that belong together: {language: NeuronScores}."""
    rng, found = np.random.default_rng(seed), {}
    widths = widths or WIDTHS
    for language in languages:
        each = {g: rng.gamma(0.5, 1.0, (documents, layers, w)).astype(np.float32) for g, w in widths.items()}
        ranks = {g: np.argsort(np.argsort(-x, axis=-1), axis=-1).astype(np.int32) for g, x in each.items()}
        provenance = {"language": language, **({"model": model} if model else {})}
        found[language] = NeuronScores(
            {g: np.sort(x, axis=0)[:kept] for g, x in each.items()},
            {g: -np.sort(-r, axis=0)[:kept] for g, r in ranks.items()},
            {g: x.mean(axis=0) for g, x in each.items()},
            rng.random((layers, widths["ffn_up"])).astype(np.float32),
            rng.standard_normal((layers, widths["ffn_up"])).astype(np.float32),
            documents,
            100,
            provenance,
        )
    return found


def real_run(folder: Path) -> Path:
    """The demo run, as `mwork run --quick` left it but for the scores, which are large."""
    shutil.copytree(REAL, folder, ignore=shutil.ignore_patterns("lens.json", "tables", "grid"))
    return folder


def all_parts(folder: Path) -> Path:
    """The demo run with everything that a report can show: real but for the scores and the tuning."""
    shutil.copytree(REAL, folder)
    shutil.copytree(_made_once(), folder / "scores")
    made_by = json.loads((folder / "results.json").read_text())["made_by"]
    (folder / "tuning").mkdir()
    (folder / "tuning" / "results.json").write_text(json.dumps(made_study(made_by["model"])))
    return folder


@cache
def _made_once() -> Path:
    """A folder of scores that fit the demo run."""
    made_by = json.loads((REAL / "results.json").read_text())["made_by"]
    model, languages = made_by["model"], made_by["settings"]["languages"]
    widths = json.loads((REAL / "neurons" / "en.json").read_text())["widths"]
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for language, scores in made_scores(languages, model["layers"], widths, model).items():
        scores.save(folder / f"{language}.safetensors")
    return folder


def made_study(model) -> dict:
    """What `mwork enhance --sweep` writes, with made-up numbers."""
    rows = [
        {
            "task": task, "language": lang, "documents": n, "neurons": kind, "eng": -3.2, "n_eng": -3.0, "n_items": 24,
            "delta_eng": 0.01, "delta_n_eng": gain, "delta_n_eng_ci95": [gain - 0.05, gain + 0.05], "delta_others": 0.0,
        }
        for task in ("held-out loss", "xquad")
        for lang in ("de", "th")
        for kind, base in (("lang-spec", 0.3), ("random", 0.05))
        for n, gain in ((100, base), (200, 1.3 * base), (400, 1.5 * base))
    ]  # fmt: skip
    original = {task: {"en": -3.2, "de": -3.3, "th": -3.1} for task in ("held-out loss", "xquad")}
    made_by = {"model": dict(model), "settings": {"documents": [100, 200, 400], "tune": {"learning_rate": 1e-4}}}
    return {"format": "mwork-results-1", "study": "enhance", "made_by": made_by, "original": original, "rows": rows}
