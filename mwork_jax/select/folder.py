"""What an output folder already holds of other languages: scores and neurons that stay beside those of a new run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.model.identity import model_of
from mwork_jax.model.model import Model
from mwork_jax.neurons import NeuronSet, files_of_languages


def refuse_other_models(out: Path, model: Model, languages: Sequence[str]) -> None:
    """Raises InputError where scores or neurons of another model would stand beside those of these languages."""
    scores, neurons = (files_of_languages(out / f, s) for f, s in (("scores", ".safetensors"), ("neurons", ".json")))
    for path in (*scores.values(), *neurons.values()):
        if path.stem not in languages:
            kept = NeuronScores.load(path) if path.suffix == ".safetensors" else NeuronSet.load(path)
            of = model_of(kept.provenance, str(path))
            if of is not None and of.key != model.key:
                raise InputError(f"{path}: of another model ({of}); choose another output folder")
