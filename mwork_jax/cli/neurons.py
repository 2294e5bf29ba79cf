"""`mwork neurons`: what the neurons of a folder's sets read and write."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mwork_jax.cli.options import (
    add_model,
    add_other_model,
    at_least,
    check_sets,
    command,
    command_of,
    languages_of,
    layers_of,
    load_model_of,
    neurons_of,
    pairs,
    print_result,
)
from mwork_jax.corpus import LANGUAGES, own_corpus, read_corpus
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.lens.neuron_contexts import named_groups, run_neurons
from mwork_jax.model.identity import model_of
from mwork_jax.neurons import FFN_GROUPS, NeuronSet, check_language, files_of_languages
from mwork_jax.report.neurons_page import FILE, neurons_page
from mwork_jax.report.text import neurons_report
from mwork_jax.results import FORMAT, write_results
from mwork_jax.runtime.files import output_folder, read_json, write_text
from mwork_jax.settings import NeuronSettings

_MAX_TOKENS = 512


def add(commands: Any) -> None:
    what = "what a language's neurons read and write: the contexts in which they act most, the tokens that they promote"
    parser = command(commands, "neurons", _neurons, what, "mwork neurons mwork-results --language de,th --top 20")
    parser.add_argument("folder", help="the folder with neurons/LANG.json; neurons.json and neurons.html go there")
    add_model(parser)
    parser.set_defaults(model=None)  # the one that the sets name
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="LANG=FILE",
        help="documents to read, text or JSONL (default: those that the sets were found on)",
    )
    parser.add_argument("--documents", type=int, help="use the first so many documents of each language (default: all)")
    parser.add_argument("--language", help="comma-separated codes, whose sets (default: all of the folder)")
    groups = ",".join(FFN_GROUPS)
    parser.add_argument("--group", default=groups, help=f"comma-separated, of which groups (default: {groups})")
    parser.add_argument("--layers", help="from 0, as in 4,9 or 4-12: of these alone (default: all)")
    parser.add_argument(
        "--top", type=int, default=20, help="so many of each set and group, by importance (default: 20)"
    )
    parser.add_argument("--contexts", type=int, default=5, help="of each neuron and language (default: 5)")
    parser.add_argument("--tokens", type=int, default=10, help="that each promotes, and suppresses (default: 10)")
    parser.add_argument("--max-tokens", type=int, help="longer documents are cut here (default: as detection did)")
    add_other_model(parser)


def _neurons(args: argparse.Namespace) -> None:
    for option in ("top", "contexts", "tokens", "documents"):
        at_least(f"--{option}", 1 if getattr(args, option) is None else getattr(args, option), 1)
    at_least("--max-tokens", 2 if args.max_tokens is None else args.max_tokens, 2)
    groups, layers = named_groups(part.strip() for part in args.group.split(",")), layers_of("--layers", args.layers)
    out = output_folder(args.folder)
    sets = _sets(out)
    languages = tuple(sets) if args.language is None else languages_of("--language", args.language)
    if missing := [lang for lang in languages if lang not in sets]:
        raise InputError(f"--language {missing[0]}: no set of it in {out / 'neurons'}, which has {', '.join(sets)}")
    last = next(iter(sets.values())).num_layers - 1
    if outside := [layer for layer in layers if layer > last]:
        raise InputError(f"--layers {outside[0]}: the model has layers 0 to {last}")
    _refuse_foreign(out / "neurons.json")
    documents, origins = _documents(args, sets)
    cut = args.max_tokens or _number(sets, "max_tokens") or _MAX_TOKENS
    settings = NeuronSettings(
        languages, groups, args.top, args.contexts, args.tokens, args.documents, cut, layers=layers
    )
    scores = _scores(out, languages)
    args.model = args.model or _model_of(sets)
    model = load_model_of(args)
    check_sets(args, model, {lang: sets[lang] for lang in languages})
    results = run_neurons(model, documents, origins, sets, scores, settings, out, command=command_of(args))
    write_results(out / "neurons.json", results)
    write_text(out / FILE, neurons_page(results))
    where = f"Look at {out / FILE}. Everything is in {out / 'neurons.json'}."
    print_result(args, results.to_json(), f"{neurons_report(results)}\n\n{where}")


def _sets(folder: Path) -> dict[str, NeuronSet]:
    paths = files_of_languages(folder / "neurons", ".json")
    if not paths:
        raise InputError(f"{folder}: no neurons/LANG.json in it; `mwork run` and `mwork select` write them")
    return neurons_of(folder, tuple(paths))


def _scores(folder: Path, languages: Sequence[str]) -> dict[str, NeuronScores]:
    """The scores beside the sets, of those languages that have some."""
    paths = files_of_languages(folder / "scores", ".safetensors")
    scores = {lang: NeuronScores.load(paths[lang]) for lang in languages if lang in paths}
    for language, own in scores.items():
        check_language(paths[language], own.provenance)
    return scores


def _refuse_foreign(path: Path) -> None:
    """Raises InputError for a file of that name that this command has not written; of a damaged one nothing is lost."""
    try:
        body = read_json(path) if path.exists() else {"format": FORMAT, "kind": "neurons"}
    except InputError:
        return
    if not isinstance(body, dict) or (body.get("format"), body.get("kind")) != (FORMAT, "neurons"):
        raise InputError(f"{path}: not a file of `mwork neurons`; move it away")


def _documents(
    args: argparse.Namespace, sets: Mapping[str, NeuronSet]
) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
    """The documents and where they are from, by language: those of --data, or those that the sets were found on."""
    texts: dict[str, Sequence[str]] = {}
    if args.data:
        origins = pairs("--data", args.data)
        texts = {lang: read_corpus(path) for lang, path in origins.items()}
    else:
        origins = {}
        for lang, own in sets.items():
            origin = own.provenance.get("corpus")
            if not isinstance(origin, str):
                raise InputError(f"the neurons of {lang} do not say on which documents they were found; give --data")
            texts[lang], origins[lang] = _first(_found_on(lang, origin), _number({lang: own}, "documents")), origin
    for lang, own in texts.items():
        if args.documents is not None and args.documents > len(own):
            raise InputError(f"{origins[lang]}: {args.documents} documents asked, there are {len(own)}")
    return {lang: _first(own, args.documents) for lang, own in texts.items()}, origins


def _found_on(language: str, origin: str) -> Sequence[str]:
    if language in LANGUAGES and own_corpus(language).origin == origin:
        return own_corpus(language).detection
    if not Path(origin).exists():
        raise InputError(
            f"{origin}: no such file; the neurons of {language} were found on it, so give --data {language}=FILE"
        )
    return read_corpus(origin)


def _first(documents: Sequence[str], count: int | None) -> Sequence[str]:
    return documents if count is None else documents[:count]


def _number(sets: Mapping[str, NeuronSet], name: str) -> int | None:
    """What the first set says of the work that found it, where that is a whole number."""
    value = next(iter(sets.values())).provenance.get(name)
    return value if type(value) is int else None


def _model_of(sets: Mapping[str, NeuronSet]) -> str:
    """Where the model of the sets was loaded from."""
    named = (model_of(own.provenance, f"the neurons of {lang}") for lang, own in sets.items())
    model = next((model for model in named if model is not None), None)
    if model is None:
        raise InputError("the sets do not say which model they are of; name it with --model")
    return model.source
