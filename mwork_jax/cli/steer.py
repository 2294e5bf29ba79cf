"""`mwork steer`: make a model write another language, with every recipe of the field, and see what it costs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

from mwork_jax.cli.options import (
    add_log_samples,
    add_model,
    add_rule,
    at_least,
    command,
    command_of,
    draw_report,
    languages_of,
    layers_of,
    load_model_of,
    one_of,
    pairs,
    print_result,
    results_folder,
)
from mwork_jax.corpus import Corpus, corpus_of_file, own_corpus
from mwork_jax.errors import InputError
from mwork_jax.evaluate.steering import SteeringPrompts, steering_prompts
from mwork_jax.evaluate.tasks import TASKS, task_named
from mwork_jax.intervene.recipes import RECIPES, recipe_named
from mwork_jax.intervention import PARTS
from mwork_jax.load import read_config
from mwork_jax.metrics import ENGLISH, LINGUA, identifier
from mwork_jax.report import read_report, steer_report
from mwork_jax.runtime.distributed import is_first
from mwork_jax.runtime.files import write_text
from mwork_jax.select.modes import Mode
from mwork_jax.select.rules import Rule
from mwork_jax.settings import SteerSettings
from mwork_jax.steering import run_steering, steer_settings

_LANGUAGES = "de,zh,ar,sw"
_WRITING = tuple(name for name, task in TASKS.items() if task.kind == "generate")


def add(commands: Any) -> None:
    what = "force the language of the answers: scale, replace or add to neurons, or add a steering vector"
    example = "mwork steer --model gemma3-270m --recipe diffmean --languages de,zh --out steered"
    parser = command(commands, "steer", _steer, what, example)
    add_model(parser)
    parser.add_argument("--out", default="mwork-steer", help="output folder (default: mwork-steer)")
    parser.add_argument(
        "--recipe", default="diffmean", help=f"comma-separated, or all: {', '.join(RECIPES)} (default: diffmean)"
    )
    parser.add_argument("--languages", default=_LANGUAGES, help=f"codes, to be written (default: {_LANGUAGES})")
    parser.add_argument("--prompts", default=ENGLISH, help="codes, the languages of the prompts (default: en)")
    parser.add_argument("--strengths", help="comma-separated; 1 is what a recipe's paper does (default: the recipe's)")
    parser.add_argument("--layers", help="from 0, as in 4,9 or 4-12, where vectors are added (default: three)")
    parser.add_argument("--on", default="all", help=f"where it acts: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--task", default="mgsm", help=f"whose questions: {', '.join(_WRITING)} (default: mgsm)")
    parser.add_argument("--data", help="the task's files or folder (default: the project's own questions)")
    parser.add_argument("--items", type=int, help="questions (default: all that the languages share)")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="of an answer (default: 32)")
    parser.add_argument(
        "--corpus",
        action="extend",
        nargs="+",
        metavar="LANG=FILE",
        help="own documents, one file per language, English too",
    )
    parser.add_argument("--documents", type=int, default=32, help="per language, for neurons and means (default: 32)")
    parser.add_argument("--held-out", type=int, default=8, help="English ones to measure damage on (default: 8)")
    add_rule(parser, mode="minus_shared")
    parser.add_argument("--seeds", type=int, default=5, help="random controls of each best setting (default: 5)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longer documents are cut here (default: 512)")
    parser.add_argument(
        "--identifier",
        default=LINGUA,
        metavar="FILE",
        help="a fastText model, as GlotLID, that names the languages of answers (default: lingua)",
    )
    add_log_samples(parser)


def _steer(args: argparse.Namespace) -> None:
    settings = _settings(args)
    out = results_folder(args.out, "steer")
    corpora, prompts = _corpora(args, settings), _prompts(args, settings)
    Mode.parse(settings.mode).check(corpora)
    steer_settings(settings, read_config(args.model).num_layers)  # before the weights take their time
    identifier(tuple(corpora), settings.identifier)
    model = load_model_of(args)
    results = run_steering(
        model, corpora, prompts, settings, out, log_samples=args.log_samples, command=command_of(args)
    )
    if not is_first():
        return
    text = steer_report(results)
    write_text(out / "table.txt", text + "\n")
    page = draw_report(read_report(out))
    print_result(args, results.to_json(), f"{text}\n\nLook at {page}. Everything is in {out}.")


def _settings(args: argparse.Namespace) -> SteerSettings:
    """Checked before the model takes its time to load."""
    Rule.parse(args.rule)
    Mode.parse(args.mode)
    one_of("--on", args.on, PARTS)
    one_of("--task", args.task, _WRITING)
    for option in ("max-new-tokens", "documents", "held-out", "seeds"):
        at_least(f"--{option}", getattr(args, option.replace("-", "_")), 1)
    at_least("--max-tokens", args.max_tokens, 2)
    recipes = tuple(RECIPES) if args.recipe == "all" else tuple(args.recipe.split(","))
    for name in recipes:
        recipe_named(name)
    languages, prompts = languages_of("--languages", args.languages), languages_of("--prompts", args.prompts)
    if set(languages) == set(prompts) and len(languages) == 1:
        raise InputError(f"--languages and --prompts are both {languages[0]}; another language is needed to force")
    return SteerSettings(
        languages=languages,
        prompts=prompts,
        recipes=recipes,
        strengths=_strengths(args.strengths),
        layers=layers_of("--layers", args.layers),
        part=args.on,
        task=args.task,
        items=args.items,
        max_new_tokens=args.max_new_tokens,
        documents=args.documents,
        held_out=args.held_out,
        rule=args.rule,
        mode=args.mode,
        seeds=args.seeds,
        max_tokens=args.max_tokens,
        identifier=args.identifier,
    )


def _strengths(text: str | None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"--strengths {text}: numbers with commas between them are needed, as in 0.5,1") from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"--strengths {text}: finite numbers are needed")
    return numbers


def _corpora(args: argparse.Namespace, settings: SteerSettings) -> Mapping[str, Corpus]:
    languages = tuple(dict.fromkeys((ENGLISH, *settings.prompts, *settings.languages)))
    files = pairs("--corpus", args.corpus) if args.corpus else {}
    if files and (missing := [lang for lang in languages if lang not in files]):
        raise InputError(f"--corpus has no documents of {', '.join(missing)}; it has {', '.join(files)}")
    return {
        lang: corpus_of_file(lang, files[lang], settings.documents) if files else own_corpus(lang) for lang in languages
    }


def _prompts(args: argparse.Namespace, settings: SteerSettings) -> dict[str, SteeringPrompts]:
    task = task_named(settings.task)
    return {
        language: steering_prompts(
            task, language, [lang for lang in settings.languages if lang != language], args.data, settings.items
        )
        for language in settings.prompts
    }
