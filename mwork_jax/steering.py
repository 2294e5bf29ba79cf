"""Forcing a language: recipes x strengths x layers x languages in one sweep, what each is worth and what it costs.

The setting of every recipe is chosen on the first half of the prompts and reported on the second, beside the original
model, a plain instruction, and matched random neurons or vectors. What `mwork steer` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import msgspec
import numpy as np

from mwork_jax.corpus import Batching, Corpus, Encoded, documents_key, encoded, warn_of_repeats
from mwork_jax.detect.language_vectors import language_vectors
from mwork_jax.detect.quantiles import activation_quantiles
from mwork_jax.detect.scores import DETECTION_COST, load_or_score
from mwork_jax.errors import InputError
from mwork_jax.evaluate.sample_rows import SteeredUnder, steering_samples
from mwork_jax.evaluate.steering import STEERING_VERSION, SteeredAnswers, SteeringPrompts, steered_answers
from mwork_jax.intervene.recipes import Materials, Recipe, intervention_of, recipe_named
from mwork_jax.intervention import Intervention
from mwork_jax.iso_639 import LANGUAGES
from mwork_jax.metrics import ENGLISH, MIN_SEEDS, Identify, harmonic_mean, identifier, paired_difference
from mwork_jax.model.model import Model
from mwork_jax.results import (
    DataInfo,
    NeuronSetInfo,
    Provenance,
    SteerChange,
    SteerResults,
    SteerRow,
    versions,
    write_results,
)
from mwork_jax.runtime.cache import CACHE_FOLDER, ResultCache, fingerprint
from mwork_jax.runtime.distributed import agreed
from mwork_jax.runtime.progress import Progress
from mwork_jax.samples import STEERING_SECTION, Sample, remove_samples, samples_path, write_samples
from mwork_jax.select.folder import refuse_other_models
from mwork_jax.select.modes import select_neurons
from mwork_jax.select.rules import kept_needed
from mwork_jax.settings import SteerSettings

_CHUNK = 8  # interventions whose answers are finished and kept together: an interrupted sweep loses one such part


@dataclass(frozen=True)
class SteerSetting:
    """One recipe with a strength and, where it adds a vector, a layer."""

    recipe: Recipe
    strength: float
    layer: int | None

    @property
    def name(self) -> str:
        at = "" if self.layer is None else f" layer {self.layer}"
        return f"{self.recipe.name} {self.strength:g}{at}"


def steer_settings(settings: SteerSettings, layers: int) -> list[SteerSetting]:
    """Every setting that the sweep tries. Raises InputError for an unknown recipe and a layer outside the model."""
    quarters = sorted({layers // 4, layers // 2, 3 * layers // 4})
    chosen = settings.layers or tuple(layer for layer in quarters if layer < layers)
    for layer in chosen:
        if not 0 <= layer < layers:
            raise InputError(f"layer {layer} is outside the model, which has layers 0 to {layers - 1}")
    return [
        SteerSetting(recipe, strength, layer)
        for recipe in map(recipe_named, settings.recipes)
        for layer in (chosen if recipe.vector else (None,))
        for strength in settings.strengths or recipe.strengths
    ]


def run_steering(
    model: Model,
    corpora: Mapping[str, Corpus],
    prompts: Mapping[str, SteeringPrompts],
    settings: SteerSettings,
    out: str | Path,
    *,
    log_samples: bool = True,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> SteerResults:
    """Measures every setting on every prompt, and writes `out/results.json`, `out/neurons/` and `out/scores/`.

    corpora: {language: its documents}, of every language to be written or of prompts, and English; prompts: {their
    language: prompts} with references in every language to be written, save that of the prompts. log_samples: writes
    `out/samples/steering.jsonl` too, every answer under every setting. What the cache in `out` holds is not computed
    again. Raises InputError, before any work, for what is missing or cannot be used, and for a folder with scores or
    neurons of another model.
    """
    out, tried = Path(out), steer_settings(settings, model.config.num_layers)
    if model.tokenizer is None:
        raise InputError(f"{model.source}: no tokenizer, so its answers have no text; add tokenizer.json")
    refuse_other_models(out, model, list(corpora))
    documents = {lang: _documents(model, corpus, settings) for lang, corpus in corpora.items()}
    warn_of_repeats({lang: corpus.detection for lang, corpus in corpora.items()}, {})
    english = list(_held_out(model, corpora[ENGLISH], settings))
    identify = identifier(tuple(corpora), settings.identifier)
    pairs = [(prompts[at], to) for at in settings.prompts for to in settings.languages if to != at]
    if any(len(set(questions.ids)) < 2 for questions, _ in pairs):
        raise InputError("steer: all questions are on one text; two are needed, to choose a setting and to report it")
    if not pairs:
        raise InputError("steer: the languages to be written are those of the prompts; another one is needed")
    for questions, wanted in pairs:
        _check_fits(model, questions, wanted, settings.max_new_tokens)
    each = len(tried) + 2 + len(settings.recipes) * settings.seeds
    with progress or Progress() as bar:
        bar.expect(
            DETECTION_COST * sum(map(len, documents.values()))
            + each * sum(len(questions.ids) for questions, _ in pairs)
        )
        materials = _materials(model, corpora, documents, settings, tried, out, bar)
        sweep = _Sweep(model, settings, english, identify, materials, ResultCache(out / CACHE_FOLDER), bar)
        measured = [sweep.of_pair(questions, wanted, tried) for questions, wanted in pairs]
    results = SteerResults(
        kind="steer",
        provenance=_provenance(model, corpora, prompts, settings, command),
        neurons={lang: NeuronSetInfo.of(own) for lang, own in materials.neurons.items()},
        grid=tuple(row for of_pair in measured for row in of_pair.grid),
        best=tuple(row for of_pair in measured for row in of_pair.best),
        examples=_examples(measured),
    )
    for language, own in materials.neurons.items():
        own.save(out / "neurons" / f"{language}.json")
    remove_samples(out, STEERING_SECTION)  # they are of the results that are replaced now
    write_results(out / "results.json", results)
    if log_samples:
        write_samples(samples_path(out, STEERING_SECTION), chain(*(of_pair.samples for of_pair in measured)))
    return results


def _documents(model: Model, corpus: Corpus, settings: SteerSettings) -> list[Encoded]:
    texts = corpus.detection[: settings.documents]
    if len(texts) < settings.documents:
        raise InputError(f"{corpus.origin}: {settings.documents} documents asked, there are {len(texts)}")
    return list(encoded(model, texts, settings.max_tokens, where=corpus.origin))


def _held_out(model: Model, corpus: Corpus, settings: SteerSettings) -> Iterator[Encoded]:
    if len(corpus.held_out) < settings.held_out:
        raise InputError(f"{corpus.origin}: {settings.held_out} held out asked, there are {len(corpus.held_out)}")
    return encoded(model, corpus.held_out[: settings.held_out], settings.max_tokens, where=corpus.origin)


def _check_fits(model: Model, questions: SteeringPrompts, wanted: str, max_new_tokens: int) -> None:
    """Raises InputError, naming the prompt, for one that the context has no room for with its answer."""
    longest = model.config.max_length
    for number, (text, reference) in enumerate(zip(questions.texts, questions.references[wanted], strict=True), 1):
        size = model.encode_prompt(text).size
        size = max(size + max_new_tokens, model.encode_prompt(f"{text} {reference}").size)
        if size > longest:
            raise InputError(
                f"{questions.origin}: prompt {number} takes {size} tokens with its answer, "
                f"the model's context is {longest}"
            )


def _materials(
    model: Model,
    corpora: Mapping[str, Corpus],
    documents: Mapping[str, Sequence[Encoded]],
    settings: SteerSettings,
    tried: Sequence[SteerSetting],
    out: Path,
    bar: Progress,
) -> Materials:
    """Scores, neurons and vectors of every language."""
    scores = {
        lang: load_or_score(
            model,
            own,
            out / "scores" / f"{lang}.safetensors",
            bar,
            language=lang,
            origin=corpora[lang].origin,
            max_tokens=settings.max_tokens,
            kept=kept_needed(settings.rule, settings.documents),
        )
        for lang, own in documents.items()
    }
    neurons = select_neurons(scores, settings.rule, settings.mode)
    methods = {setting.recipe.vector for setting in tried if setting.recipe.vector}
    vectors = {m: language_vectors(model, scores if m == "diffmean" else documents, m) for m in sorted(methods)}
    medians: dict[str, np.ndarray] = {}
    if any(setting.recipe.needs_medians for setting in tried):
        batching = Batching(max_tokens=settings.max_tokens)
        medians = {
            lang: activation_quantiles(model, documents[lang], (0.5,), batching=batching)[0]
            for lang in settings.languages
        }
    return Materials(model.config, neurons, scores, vectors, medians)


@dataclass(frozen=True)
class _OfPair:
    """What was measured for the prompts of one language and one language wanted."""

    prompt: str
    grid: tuple[SteerRow, ...]
    best: tuple[SteerRow, ...]
    answers: Mapping[str, str]  # setting: the first answer
    samples: tuple[Sample, ...]


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Measures settings, with what all of them need."""

    model: Model
    settings: SteerSettings
    english: Sequence[Encoded]
    identify: Identify
    materials: Materials
    cache: ResultCache
    bar: Progress

    def of_pair(self, questions: SteeringPrompts, wanted: str, tried: Sequence[SteerSetting]) -> _OfPair:
        none = Intervention.none(self.model.config)
        edits = [self._edit(self.materials, setting, questions, wanted) for setting in tried]
        original, *answers = self._answers(questions, wanted, [none, *edits])
        (instructed,) = self._answers(questions.after(f"Answer in {_name(wanted)}."), wanted, [none])
        measures = _Measures(self, questions, wanted, original)
        grid = tuple(measures.row("steered", one, setting) for setting, one in zip(tried, answers, strict=True))
        second = second_half(questions.ids)
        best = [measures.row("original", original, None, second), measures.row("instruction", instructed, None, second)]
        under = [SteeredUnder("original", "", None, original), SteeredUnder("instruction", "", None, instructed)]
        under += [SteeredUnder("steered", s.name, None, one) for s, one in zip(tried, answers, strict=True)]
        for name in dict.fromkeys(setting.recipe.name for setting in tried):
            own = [n for n, setting in enumerate(tried) if setting.recipe.name == name]
            chosen = max(own, key=lambda n: measures.row("steered", answers[n], tried[n], ~second).score)
            controls = self._controls(tried[chosen], questions, wanted)
            under += [SteeredUnder("random", tried[chosen].name, seed, one) for seed, one in enumerate(controls)]
            best.append(measures.row("steered", answers[chosen], tried[chosen], second, controls))
            best.append(measures.mean_row(controls, tried[chosen], second))
        texts = {"original": original.answers[0], f"instruction {wanted}": instructed.answers[0]}
        texts |= {f"{wanted} {s.name}": one.answers[0] for s, one in zip(tried, answers, strict=True)}
        samples = tuple(steering_samples(questions, wanted, under, self.identify))
        return _OfPair(questions.language, grid, tuple(best), texts, samples)

    def _edit(
        self, materials: Materials, setting: SteerSetting, questions: SteeringPrompts, wanted: str
    ) -> Intervention:
        edit = intervention_of(setting.recipe, materials, wanted, questions.language, setting.strength, setting.layer)
        return edit.on(self.settings.part)

    def _controls(self, setting: SteerSetting, questions: SteeringPrompts, wanted: str) -> list[SteeredAnswers]:
        drawn = [self.materials.random_like(seed) for seed in range(self.settings.seeds)]
        return self._answers(questions, wanted, [self._edit(random, setting, questions, wanted) for random in drawn])

    def _answers(self, questions: SteeringPrompts, wanted: str, edits: Sequence[Intervention]) -> list[SteeredAnswers]:
        """From the cache where it holds a whole chunk: rounding depends on what runs side by side."""
        determined = {
            "evaluator": STEERING_VERSION,
            "model": self.model.key,
            "prompts": dict(questions.key),
            "references": list(questions.references[wanted]),
            "english": documents_key(self.english),
            "max_new_tokens": self.settings.max_new_tokens,
        }
        answers: list[SteeredAnswers] = []
        left = iter(edits)
        while chunk := list(islice(left, _CHUNK)):
            keys = [{**determined, "intervention": edit.fingerprint} for edit in chunk]
            known = agreed(partial(self._cached, keys, len(questions.ids)))
            self.bar.describe(f"{questions.language} to {wanted}: {len(chunk)} settings")
            if known is None:
                computed = steered_answers(
                    self.model,
                    questions,
                    wanted,
                    self.english,
                    chunk,
                    max_new_tokens=self.settings.max_new_tokens,
                    progress=self.bar.callback(),
                )
                known = list(map(msgspec.to_builtins, computed))
                self.cache.put_all(list(zip(keys, known, strict=True)))
            else:
                self.bar.add(len(chunk) * len(questions.ids), free=True)
            answers += [msgspec.convert(one, SteeredAnswers) for one in known]
        return answers

    def _cached(self, keys: Sequence[Mapping[str, object]], items: int) -> list[object] | None:
        """What the cache holds under these keys, as JSON values; None where one is missing or damaged."""
        known: list[object] = [self.cache.get(key) for key in keys]
        return known if all(_valid(value, items, len(self.english)) for value in known) else None


def _valid(value: object, items: int, documents: int) -> bool:
    """Whether a cached value can be the answers to so many prompts, with the losses of so many documents."""
    try:
        answers = msgspec.convert(value, SteeredAnswers)
    except msgspec.ValidationError:
        return False
    nats, tokens = (*answers.nats, *answers.english_nats), (*answers.tokens, *answers.english_tokens)
    return (
        {len(answers.answers), len(answers.nats), len(answers.tokens)} == {items}
        and {len(answers.english_nats), len(answers.english_tokens)} == {documents}
        and bool(np.isfinite(nats).all())
        and min(tokens) > 0
    )


@dataclass(frozen=True, eq=False)
class _Measures:
    """Rows for the prompts of one language and one language wanted, compared with the original's answers."""

    sweep: _Sweep
    questions: SteeringPrompts
    wanted: str
    original: SteeredAnswers

    def row(
        self,
        kind: str,
        answers: SteeredAnswers,
        setting: SteerSetting | None,
        which: np.ndarray | None = None,
        controls: Sequence[SteeredAnswers] = (),
    ) -> SteerRow:
        """One setting on the prompts `which`, bool [items]; None for all."""
        which = np.ones(len(self.questions.ids), bool) if which is None else which
        forcing = self._forcing(answers)[which]
        relevance = answers.relevance(self.questions.references[self.wanted])[which].mean()
        beyond_random = None
        if len(controls) >= MIN_SEEDS:
            beyond_random = self._change(forcing, np.stack([self._forcing(one)[which] for one in controls]), which)
        return SteerRow(
            kind=kind,  # type: ignore[arg-type]
            prompt=self.questions.language,
            language=self.wanted,
            recipe=None if setting is None else setting.recipe.name,
            strength=None if setting is None else setting.strength,
            layer=None if setting is None else setting.layer,
            forcing=float(forcing.mean()),
            relevance=float(relevance),
            score=harmonic_mean(float(forcing.mean()), float(relevance)),
            reference_loss=_per_token(answers.nats, answers.tokens, which),
            english_loss=self._english(answers) - self._english(self.original),
            repetition=float(answers.repetition[which].mean()),
            n_items=int(which.sum()),
            beyond_original=None
            if kind == "original"
            else self._change(forcing, self._forcing(self.original)[which], which),
            beyond_random=beyond_random,
        )

    def mean_row(self, controls: Sequence[SteeredAnswers], setting: SteerSetting, which: np.ndarray) -> SteerRow:
        """The means over matched random controls."""
        rows = [self.row("random", one, setting, which) for one in controls]
        means = {
            name: float(np.mean([getattr(row, name) for row in rows]))
            for name in ("forcing", "relevance", "reference_loss", "english_loss", "repetition")
        }
        score = harmonic_mean(means["forcing"], means["relevance"])
        return replace(rows[0], **means, score=score, seeds=len(rows), beyond_original=None)

    def _forcing(self, answers: SteeredAnswers) -> np.ndarray:
        return answers.forcing(self.wanted, self.sweep.identify)

    def _change(self, forcing: np.ndarray, reference: np.ndarray, which: np.ndarray) -> SteerChange:
        groups = {self.wanted: [name for name, inside in zip(self.questions.ids, which, strict=True) if inside]}
        single = reference.ndim == 2
        difference = paired_difference(
            {self.wanted: forcing}, {self.wanted: reference}, groups=groups, single_draw=single
        )
        return SteerChange(difference.change, difference.ci95, difference.p)

    def _english(self, answers: SteeredAnswers) -> float:
        return float(np.sum(answers.english_nats) / np.sum(answers.english_tokens))


def _per_token(nats: Sequence[float], tokens: Sequence[int], which: np.ndarray) -> float:
    return float(np.asarray(nats)[which].sum() / np.asarray(tokens)[which].sum())


def second_half(ids: Sequence[str]) -> np.ndarray:
    """Every other question, bool [items]. Those with one id, on the same passage, are in the same half: a setting is
    chosen on texts that it is not reported on."""
    place = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    return np.asarray([place[name] % 2 == 1 for name in ids])


def _name(language: str) -> str:
    """A language's English name, for an instruction."""
    return LANGUAGES.get(language.split("-")[0].lower(), (language,))[0]


def _examples(measured: Sequence[_OfPair]) -> dict[str, dict[str, str]]:
    examples: dict[str, dict[str, str]] = {}
    for of_pair in measured:
        examples.setdefault(of_pair.prompt, {}).update(of_pair.answers)
    return examples


def _provenance(
    model: Model,
    corpora: Mapping[str, Corpus],
    prompts: Mapping[str, SteeringPrompts],
    settings: SteerSettings,
    command: Sequence[str],
) -> Provenance[SteerSettings]:
    data = {
        lang: DataInfo(corpus.origin, settings.documents, fingerprint([*corpus.detection[: settings.documents]]))
        for lang, corpus in corpora.items()
    }
    for lang, questions in prompts.items():
        data[f"{lang} prompts"] = DataInfo(questions.origin, len(questions.ids), fingerprint(dict(questions.key)))
    return Provenance(model.info, data, settings, versions(), tuple(command))
