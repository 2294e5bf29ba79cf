"""mwork-jax: how language models handle languages, in JAX.

Find the language-specific neurons of a model from unlabelled text, switch them off, measure what that does.

    import mwork_jax as mw
    model = mw.load_model("gemma3-270m")
    scores = {lang: mw.score_neurons(model, documents[lang]) for lang in ("en", "de")}
    german = mw.select_neurons(scores)["de"]
    logits = mw.forward(model, tokens, mw.NeuronMask.keep_all(model.config).drop(german))
"""

import mwork_jax.runtime.jax_import  # noqa: F401  before whatever else imports JAX

# isort: split
from collections.abc import Callable
from functools import partial
from typing import TypeVar, overload

import jax

from mwork_jax.analysis import Overlap, Routing, neurons_by_expert, overlap, routing, threshold_curves
from mwork_jax.config import ModelConfig
from mwork_jax.corpus import Batching, Corpus, corpus_of_file, own_corpus, read_corpus
from mwork_jax.detect.attribution import attribution
from mwork_jax.detect.importance import importance
from mwork_jax.detect.language_vectors import language_vectors
from mwork_jax.detect.quantiles import activation_quantiles
from mwork_jax.detect.scores import NeuronScores, score_neurons
from mwork_jax.enhance import Tuned, TuneSettings, TuningRun, fine_tune, fine_tune_many
from mwork_jax.enhance.export import apply_delta, save_delta, save_folder
from mwork_jax.enhance.table6 import EvaluationSuite, HeldOut, run_enhancement
from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import HeldOutLoss, LogLikelihood, held_out_loss, log_likelihood
from mwork_jax.evaluate.table_files import TABLES, read_table
from mwork_jax.evaluate.table_run import prepare_losses, prepare_table, run_table
from mwork_jax.intervene.recipes import RECIPES, Materials, Recipe, intervention_of
from mwork_jax.intervene.stages import StageSetting, StageSplit
from mwork_jax.intervention import Intervention
from mwork_jax.lens.logit_lens import LanguageShares, language_shares, lens_logits, run_lens, top_tokens
from mwork_jax.lens.neuron_contexts import neuron_contexts, run_neurons
from mwork_jax.lens.vocabulary import VocabularyLabels, label_vocabulary
from mwork_jax.load import load_model
from mwork_jax.metrics import Delta, PairedDifference, beyond_random, delta, paired_difference
from mwork_jax.model.checks import check_mask, check_model, check_tokens
from mwork_jax.model.decoder import Decoder, LayerRecord, forward_decoder
from mwork_jax.model.decoder import hidden_states as decoder_hidden_states
from mwork_jax.model.generate import generate
from mwork_jax.model.model import Model
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet
from mwork_jax.pipeline import run_detection, run_pipeline
from mwork_jax.report import Report, read_report
from mwork_jax.results import read_results, write_results
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.samples import Sample, SampleAnswer, SideBySide, read_samples, side_by_side
from mwork_jax.select.modes import select_neurons
from mwork_jax.select.rules import Rule, activated
from mwork_jax.select.strongest import strongest_neurons
from mwork_jax.settings import (
    DetectSettings,
    EnhanceSettings,
    LensSettings,
    NeuronSettings,
    RunSettings,
    SteerSettings,
    TableSettings,
)
from mwork_jax.sharding import make_mesh, on_mesh_of
from mwork_jax.steering import run_steering
from mwork_jax.version import __version__

__all__ = [
    "GROUPS",
    "RECIPES",
    "TABLES",
    "Batching",
    "Corpus",
    "Decoder",
    "Delta",
    "DetectSettings",
    "EnhanceSettings",
    "EvaluationSuite",
    "HeldOut",
    "HeldOutLoss",
    "InputError",
    "Intervention",
    "LanguageShares",
    "LayerRecord",
    "LensSettings",
    "LogLikelihood",
    "Materials",
    "Model",
    "ModelConfig",
    "NeuronMask",
    "NeuronScores",
    "NeuronSet",
    "NeuronSettings",
    "Overlap",
    "PairedDifference",
    "Recipe",
    "Report",
    "ResultCache",
    "Routing",
    "Rule",
    "RunSettings",
    "Sample",
    "SampleAnswer",
    "SideBySide",
    "StageSetting",
    "StageSplit",
    "SteerSettings",
    "TableSettings",
    "TuneSettings",
    "Tuned",
    "TuningRun",
    "VocabularyLabels",
    "__version__",
    "activated",
    "activation_quantiles",
    "apply_delta",
    "attribution",
    "beyond_random",
    "corpus_of_file",
    "delta",
    "fine_tune",
    "fine_tune_many",
    "forward",
    "generate",
    "held_out_loss",
    "hidden_states",
    "importance",
    "intervention_of",
    "label_vocabulary",
    "language_shares",
    "language_vectors",
    "lens_logits",
    "load_model",
    "log_likelihood",
    "make_mesh",
    "neuron_contexts",
    "neurons_by_expert",
    "overlap",
    "own_corpus",
    "paired_difference",
    "prepare_losses",
    "prepare_table",
    "read_corpus",
    "read_report",
    "read_results",
    "read_samples",
    "read_table",
    "routing",
    "run_detection",
    "run_enhancement",
    "run_lens",
    "run_neurons",
    "run_pipeline",
    "run_steering",
    "run_table",
    "save_delta",
    "save_folder",
    "score_neurons",
    "select_neurons",
    "side_by_side",
    "strongest_neurons",
    "threshold_curves",
    "top_tokens",
    "write_results",
]


Observed = TypeVar("Observed")


def forward(model: Model, tokens: jax.Array, mask: NeuronMask | Intervention) -> jax.Array:
    """`tokens` int32 [batch, time] -> logits float32 [batch, time, vocab], with the neurons of `mask` that are 0
    switched off.

    Compiled once for a shape of tokens, whatever the mask; it can be composed with jit, vmap over masks, and grad.
    Padding belongs on the right. Raises InputError for tokens outside the vocabulary or the context, for a mask of
    another shape, and for one that is not finite; inside jit, only for shapes.
    """
    tokens = _checked(model, tokens, mask)
    with on_mesh_of(model.decoder):
        return forward_decoder(model.decoder, tokens, mask)


@overload
def hidden_states(
    model: Model, tokens: jax.Array, mask: NeuronMask | Intervention, *, observe: None = None
) -> tuple[jax.Array, None]: ...
@overload
def hidden_states(
    model: Model, tokens: jax.Array, mask: NeuronMask | Intervention, *, observe: Callable[[LayerRecord], Observed]
) -> tuple[jax.Array, Observed]: ...
def hidden_states(
    model: Model,
    tokens: jax.Array,
    mask: NeuronMask | Intervention,
    *,
    observe: Callable[[LayerRecord], Observed] | None = None,
) -> tuple[jax.Array, Observed | None]:
    """The residual stream after the last layer, and what `observe` makes of each layer's activations.

    tokens, mask: as in `forward`. observe: a pure function of a `LayerRecord` (queries, keys, values, heads, the
    feed-forward's products, the residual stream, of one layer under `mask`) to arrays, in any pytree: the activations
    themselves, to keep them, or numbers of them, which take less memory. What it does not use is not kept.
    Returns (float32 [batch, time, hidden] before the final norm, observe's arrays with a leading axis of layers; None
    without it).

    Compiled once for a shape of tokens and a function: pass the same function again, not a new lambda at every call.
    It can be composed with jit, vmap over masks, and grad. Raises InputError as `forward`, for an `observe` that is no
    function, and for a field that a `LayerRecord` does not have.
    """
    tokens = _checked(model, tokens, mask)
    if observe is not None and not callable(observe):
        raise InputError(f"observe is a {type(observe).__name__}; a function of a LayerRecord is needed")
    try:
        with on_mesh_of(model.decoder):
            return _observed(model.decoder, tokens, mask, observe=observe)
    except AttributeError as error:
        if not isinstance(error.obj, LayerRecord):
            raise
        fields = ", ".join(LayerRecord._fields)
        raise InputError(f"observe: a LayerRecord has no {error.name}; it has {fields}") from None


_observed = partial(jax.jit, static_argnames="observe")(decoder_hidden_states)


def _checked(model: Model, tokens: jax.Array, mask: NeuronMask | Intervention) -> jax.Array:
    """The tokens as an array. Raises InputError for arguments that cannot be meant."""
    check_model(model)
    tokens = check_tokens(model.config, tokens)
    check_mask(model.config, mask)
    return tokens
