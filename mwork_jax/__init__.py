"""mwork-jax: how language models handle languages, in JAX.

Find the language-specific neurons of a model from unlabelled text, switch them off, measure what that does.

    import mwork_jax as mw
    model = mw.load_model("gemma3-270m")
    scores = {lang: mw.score_neurons(model, documents[lang]) for lang in ("en", "de")}
    german = mw.select_neurons(scores)["de"]
    logits = mw.forward(model, tokens, mw.NeuronMask.keep_all(model.config).drop(german))
"""

import jax

from mwork_jax.analysis import Overlap, overlap, threshold_curves
from mwork_jax.config import ModelConfig
from mwork_jax.corpus import Batching, read_corpus
from mwork_jax.detect.importance import importance
from mwork_jax.detect.scores import NeuronScores, score_neurons
from mwork_jax.enhance import Run, Tuned, TuneSettings, fine_tune, fine_tune_many
from mwork_jax.enhance.export import apply_delta, save_delta, save_folder
from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import HeldOutLoss, LogLikelihood, held_out_loss, log_likelihood
from mwork_jax.intervene.stages import StageSetting, StageSplit
from mwork_jax.lens.logit_lens import LanguageShares, language_shares, lens_logits, top_tokens
from mwork_jax.lens.vocabulary import VocabularyLabels, label_vocabulary
from mwork_jax.load import load_model
from mwork_jax.metrics import Delta, delta
from mwork_jax.model.decoder import Decoder, forward_decoder
from mwork_jax.model.generate import generate
from mwork_jax.model.model import Model
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet
from mwork_jax.report import Report, read_report
from mwork_jax.select.modes import select_neurons
from mwork_jax.select.rules import Rule, activated
from mwork_jax.sharding import make_mesh, on_mesh_of
from mwork_jax.version import __version__

__all__ = [
    "GROUPS",
    "Batching",
    "Decoder",
    "Delta",
    "HeldOutLoss",
    "InputError",
    "LanguageShares",
    "LogLikelihood",
    "Model",
    "ModelConfig",
    "NeuronMask",
    "NeuronScores",
    "NeuronSet",
    "Overlap",
    "Report",
    "Rule",
    "Run",
    "StageSetting",
    "StageSplit",
    "TuneSettings",
    "Tuned",
    "VocabularyLabels",
    "__version__",
    "activated",
    "apply_delta",
    "delta",
    "fine_tune",
    "fine_tune_many",
    "forward",
    "generate",
    "held_out_loss",
    "importance",
    "label_vocabulary",
    "language_shares",
    "lens_logits",
    "load_model",
    "log_likelihood",
    "make_mesh",
    "overlap",
    "read_corpus",
    "read_report",
    "save_delta",
    "save_folder",
    "score_neurons",
    "select_neurons",
    "threshold_curves",
    "top_tokens",
]


def forward(model: Model, tokens: jax.Array, mask: NeuronMask) -> jax.Array:
    """`tokens` int32 [batch, time] -> logits float32 [batch, time, vocab], with the neurons of `mask` that are 0
    switched off.

    Compiled once for a shape of tokens, whatever the mask; it can be composed with jit, vmap over masks, and grad.
    Padding belongs on the right.
    """
    with on_mesh_of(model.decoder):
        return forward_decoder(model.decoder, tokens, mask)
