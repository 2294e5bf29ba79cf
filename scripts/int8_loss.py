"""What 8-bit weights cost: held-out loss in ten languages, and which neurons are found, against the weights as they
are.

    python scripts/int8_loss.py gemma3-270m --documents 16

The documents are the project's own. float32 is the reference; bfloat16 stands beside int8 (read in bfloat16), as that
is what it replaces. Overlap: of the sets that `mwork detect` and `mwork select` find from so many documents, the share
of neurons in both (Jaccard), median over the languages, and the least.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np

import mwork_jax as mw
from mwork_jax.corpus import LANGUAGES, Batching, own_corpus
from mwork_jax.detect.scores import score_neurons
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.select.modes import select_neurons

KINDS = {"float32": ("float32", None), "bfloat16": ("bfloat16", None), "int8": ("bfloat16", "int8")}


def losses_and_sets(model: mw.Model, documents: int) -> tuple[dict[str, float], dict[str, NeuronSet]]:
    """Held-out nats per token, and the neurons of each language but English."""
    keep, scores, losses = NeuronMask.keep_all(model.config), {}, {}
    for language in LANGUAGES:
        corpus = own_corpus(language)
        losses[language] = mw.held_out_loss(model, corpus.held_out, keep).per_token
        scores[language] = score_neurons(model, corpus.detection[:documents], batching=Batching(max_tokens=256))
    return losses, select_neurons(scores, "top_fraction:0.05")


def jaccard(some: NeuronSet, others: NeuronSet) -> float:
    return (some & others).count() / max(1, (some | others).count())


def shared(some: Mapping[str, NeuronSet], others: Mapping[str, NeuronSet]) -> str:
    found = [jaccard(own, others[language]) for language, own in some.items()]
    return f"{np.median(found):.3f} (least {min(found):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as of `mwork run --model`")
    parser.add_argument("--documents", type=int, default=16, help="per language, to find neurons (default: 16)")
    args = parser.parse_args()
    found = {}
    for kind, (dtype, weights) in KINDS.items():
        found[kind] = losses_and_sets(mw.load_model(args.model, dtype=dtype, weights=weights), args.documents)
    print(f"{'language':<10}{'float32':>10}{'bfloat16':>10}{'int8':>10}{'int8 - float32':>16}{'int8 - bfloat16':>17}")
    for language in found["float32"][0]:
        exact, half, int8 = (found[kind][0][language] for kind in KINDS)
        print(f"{language:<10}{exact:>10.4f}{half:>10.4f}{int8:>10.4f}{int8 - exact:>+16.4f}{int8 - half:>+17.4f}")
    print(f"sets of bfloat16 and float32 overlap by {shared(found['bfloat16'][1], found['float32'][1])}")
    print(f"sets of int8 and float32 overlap by {shared(found['int8'][1], found['float32'][1])}")
    print(f"sets of int8 and bfloat16 overlap by {shared(found['int8'][1], found['bfloat16'][1])}")


if __name__ == "__main__":
    main()
