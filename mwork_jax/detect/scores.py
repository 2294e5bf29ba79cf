# shim
from mwork_jax.corpus import Batching, documents_key
from mwork_jax.detect.importance import *
from mwork_jax.detect.importance import DEFAULT_KEPT, DETECTOR_VERSION, NeuronScores, score_neurons
from mwork_jax.errors import InputError
from mwork_jax.runtime.cache import fingerprint
from mwork_jax.runtime.distributed import everyone
from mwork_jax.select_rule_shim import missing

DETECTION_COST = 1.5


def scores_key(model, documents, max_tokens, include_bos):
    return fingerprint([DETECTOR_VERSION, model.key, documents_key(documents), max_tokens, include_bos])


def load_or_score(model, language, documents, origin, max_tokens, out, bar, *, kept=DEFAULT_KEPT, include_bos=False):
    path = out / "scores" / f"{language}.safetensors"
    key = scores_key(model, documents, max_tokens, include_bos)
    bar.describe(f"detect {language}")

    def made_with():
        try:
            found = NeuronScores.load(path) if path.exists() else None
        except InputError:
            return False
        return found is not None and found.provenance.get("key") == key and found.kept >= kept

    if everyone(made_with()):
        bar.add(DETECTION_COST * len(documents), free=True)
        return NeuronScores.load(path)
    scores = score_neurons(
        model,
        documents,
        kept=kept,
        include_bos=include_bos,
        batching=Batching(max_tokens=max_tokens),
        provenance={"language": language, "corpus": origin, "key": key},
        progress=bar.callback(DETECTION_COST),
    )
    scores.save(path)
    return scores


def scores_to_keep(rule, documents):
    return max(DEFAULT_KEPT, missing(rule, documents) + 1)
