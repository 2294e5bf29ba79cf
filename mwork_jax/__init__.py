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
import jax

from mwork_jax.analysis import Overlap, overlap, threshold_curves
from mwork_jax.config import ModelConfig
from mwork_jax.corpus import Batching, Corpus, corpus_of_file, own_corpus, read_corpus
from mwork_jax.detect.attribution import attribution
from mwork_jax.detect.importance import importance
from mwork_jax.detect.scores import NeuronScores, score_neurons
from mwork_jax.enhance import Tuned, TuneSettings, TuningRun, fine_tune, fine_tune_many
from mwork_jax.enhance.export import apply_delta, save_delta, save_folder
from mwork_jax.enhance.table6 import EvaluationSuite, HeldOut, run_enhancement
from mwork_jax.errors import InputError
from mwork_jax.evaluate.likelihood import HeldOutLoss, LogLikelihood, held_out_loss, log_likelihood
from mwork_jax.evaluate.paper_tables import TABLES
from mwork_jax.evaluate.table_run import prepare_table, run_table
from mwork_jax.intervene.stages import StageSetting, StageSplit
from mwork_jax.lens.logit_lens import LanguageShares, language_shares, lens_logits, run_lens, top_tokens
from mwork_jax.lens.vocabulary import VocabularyLabels, label_vocabulary
from mwork_jax.load import load_model
from mwork_jax.metrics import Delta, PairedDifference, beyond_random, delta, paired_difference
from mwork_jax.model.checks import check_mask, check_tokens
from mwork_jax.model.decoder import Decoder, forward_decoder
from mwork_jax.model.generate import generate
from mwork_jax.model.model import Model
from mwork_jax.neurons import GROUPS, NeuronMask, NeuronSet
from mwork_jax.pipeline import run_detection, run_pipeline
from mwork_jax.report import Report, read_report
from mwork_jax.results import read_results, write_results
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.select.modes import select_neurons
from mwork_jax.select.rules import Rule, activated
from mwork_jax.settings import DetectSettings, EnhanceSettings, LensSettings, RunSettings, TableSettings
from mwork_jax.sharding import make_mesh, on_mesh_of
from mwork_jax.version import __version__

__all__ = [
    "GROUPS",
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
    "LanguageShares",
    "LensSettings",
    "LogLikelihood",
    "Model",
    "ModelConfig",
    "NeuronMask",
    "NeuronScores",
    "NeuronSet",
    "Overlap",
    "PairedDifference",
    "Report",
    "ResultCache",
    "Rule",
    "RunSettings",
    "StageSetting",
    "StageSplit",
    "TableSettings",
    "TuneSettings",
    "Tuned",
    "TuningRun",
    "VocabularyLabels",
    "__version__",
    "activated",
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
    "importance",
    "label_vocabulary",
    "language_shares",
    "lens_logits",
    "load_model",
    "log_likelihood",
    "make_mesh",
    "overlap",
    "own_corpus",
    "paired_difference",
    "prepare_table",
    "read_corpus",
    "read_report",
    "read_results",
    "run_detection",
    "run_enhancement",
    "run_lens",
    "run_pipeline",
    "run_table",
    "save_delta",
    "save_folder",
    "score_neurons",
    "select_neurons",
    "threshold_curves",
    "top_tokens",
    "write_results",
]


def forward(model: Model, tokens: jax.Array, mask: NeuronMask) -> jax.Array:
    """`tokens` int32 [batch, time] -> logits float32 [batch, time, vocab], with the neurons of `mask` that are 0
    switched off.

    Compiled once for a shape of tokens, whatever the mask; it can be composed with jit, vmap over masks, and grad.
    Padding belongs on the right. Raises InputError for tokens outside the vocabulary or the context, for a mask of
    another shape, and for one that is not finite; inside jit, only for shapes.
    """
    tokens = check_tokens(model.config, tokens)
    check_mask(model.config, mask)
    with on_mesh_of(model.decoder):
        return forward_decoder(model.decoder, tokens, mask)
