"""Folders of results for tests of the report: what Gemma 3 270M really gave, and parts that are made up."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from mwork_jax.detect.scores import NeuronScores
from mwork_jax.intervene.stages import StageSplit
from mwork_jax.metrics import McNemar, Spread
from mwork_jax.model.identity import ModelInfo
from mwork_jax.neurons import GROUPS, NeuronSet
from mwork_jax.results import (
    AnyResults,
    BeyondRandom,
    Change,
    DataInfo,
    DeltaRow,
    DetectResults,
    EnhanceResults,
    LabelsInfo,
    LanguageChange,
    LensExample,
    LensResults,
    LensShares,
    LensToken,
    LmEvalResults,
    LmEvalRow,
    LmEvalScore,
    LmEvalTask,
    LossRise,
    McNemarPair,
    NeuronActivity,
    NeuronContext,
    NeuronReading,
    NeuronResults,
    NeuronSetInfo,
    OriginalLoss,
    Provenance,
    RandomChange,
    RowChange,
    RunResults,
    ScoresInfo,
    SeedSpread,
    SteerChange,
    SteerResults,
    SteerRow,
    TableResult,
    TablesResults,
    TaskInfo,
    TokenWeight,
    TuningChange,
    TuningRow,
    TuningRunInfo,
    read_results,
    write_results,
)
from mwork_jax.samples import Sample, SampleAnswer
from mwork_jax.settings import (
    DetectSettings,
    EnhanceSettings,
    LensSettings,
    LmEvalSettings,
    NeuronSettings,
    RunSettings,
    SteerSettings,
    TableSettings,
    TuneSettings,
)
from support.paths import TEST_DATA

# What mwork run --quick, mwork lens and mwork evaluate gave (float32, two cores); the commands are in the files.
REAL = TEST_DATA / "gemma3-270m-quick"
LANGUAGES = ("en", "de", "th")
WIDTHS = dict(zip(GROUPS, (32, 16, 16, 48, 48), strict=True))
MODEL = ModelInfo("made-up", "llama", 3, 16, "float32", "0123456789abcdef", "fedcba9876543210")
VERSIONS = {"mwork-jax": "0.2.0", "python": "3.11.7", "jax": "0.8.0"}
STAGES = ("under", "s_attn", "s_ffn", "gen")


def made_scores(languages=LANGUAGES, layers=3, widths=None, model=None, kept=2, documents=4, seed=0):
    """Random scores with ranks and importances that belong together: {language: NeuronScores}."""
    rng, scores = np.random.default_rng(seed), {}
    widths = widths or WIDTHS
    for language in languages:
        each = {g: rng.gamma(0.5, 1.0, (documents, layers, w)).astype(np.float32) for g, w in widths.items()}
        ranks = {g: np.argsort(np.argsort(-x, axis=-1), axis=-1).astype(np.int32) for g, x in each.items()}
        provenance = {"language": language, **({"model": identity(model)} if model else {})}
        scores[language] = NeuronScores(
            {g: np.sort(x, axis=0)[:kept] for g, x in each.items()},
            {g: -np.sort(-r, axis=0)[:kept] for g, r in ranks.items()},
            {g: x.mean(axis=0) for g, x in each.items()},
            rng.random((layers, widths["ffn_up"])).astype(np.float32),
            rng.standard_normal((layers, widths["ffn_up"])).astype(np.float32),
            documents,
            100,
            provenance,
        )
    return scores


def identity(model: ModelInfo) -> dict[str, str | int | None]:
    """The model as sets and scores name it."""
    return {
        "source": model.source,
        "family": model.family,
        "layers": model.layers,
        "hidden_size": model.hidden_size,
        "dtype": model.dtype,
        "weights": model.weights,
        "tokenizer": model.tokenizer,
    }


def real_run(folder: Path) -> Path:
    """The demo run, as `mwork run --quick` left it but for the scores, which are large."""
    shutil.copytree(REAL, folder, ignore=shutil.ignore_patterns("lens.json", "tables", "grid"))
    return folder


def all_parts(folder: Path) -> Path:
    """The demo run with everything that a report can show: real but for the scores and the tuning."""
    shutil.copytree(REAL, folder)
    shutil.copytree(_made_once(), folder / "scores")
    run = read_results(REAL / "results.json")
    assert isinstance(run, RunResults)
    model = run.provenance.model
    write_results(folder / "tuning" / "results.json", made_tuning(model))
    steering = made_steering()
    steering = replace(steering, provenance=replace(steering.provenance, model=model))
    write_results(folder / "steering" / "results.json", steering)
    return folder


@cache
def _made_once() -> Path:
    """A folder of scores that fit the demo run."""
    provenance = read_results(REAL / "results.json").provenance
    neurons = NeuronSet.load(REAL / "neurons" / "en.json")
    widths = {group: members.shape[1] for group, members in neurons.groups.items()}
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = provenance.model
    for language, scores in made_scores(provenance.settings.languages, model.layers, widths, model).items():
        scores.save(folder / f"{language}.safetensors")
    return folder


def made_row(neurons: str = "lang-spec", off: Sequence[str] = ("under",), **changes) -> DeltaRow:
    """A row with every field filled, but for N1 and N2."""
    random = neurons == "random"
    row = DeltaRow(
        kind="delta",
        table=4,
        task="xcsqa",
        model="made-up",
        **{stage: stage in off for stage in STAGES},
        neurons=neurons,  # type: ignore[arg-type]
        seeds=5 if random else 0,
        eng=80.0,
        n_eng=50.0,
        delta_eng=-1.0,
        delta_n_eng=-3.0,
        delta=2.0,
        delta_eng_ci95=(-2.0, 0.0),
        delta_n_eng_ci95=(-4.5, -1.5),
        delta_ci95=(0.5, 3.5),
        p=0.01,
        n_items=24,
        n_clusters=8,
        languages=("de", "th"),
        p_holm=0.02,
        beyond_random=None if random else BeyondRandom(1.5, (0.25, 2.75), 0.02, 0.04),
        seed_spread=SeedSpread(*(Spread(x, 0.5, x - 1, x + 1, 5) for x in (-1.0, -3.0, 2.0))) if random else None,
        by_language={"de": RowChange(-2.0, -1.0), "th": RowChange(-4.0, -1.0)},
        mcnemar={} if random else {"de": McNemarPair(McNemar(3, 1, 0.625, False, 0.9), McNemar(0, 0, 1.0))},
    )
    return replace(row, **changes)


def made_provenance(settings, languages: Sequence[str] = LANGUAGES) -> Provenance:
    data = {lang: DataInfo(f"mwork-jax data, {lang}", 8, "ab" * 16, "main") for lang in languages}
    return Provenance(MODEL, data, settings, VERSIONS, ("mwork", "made", "up"), 0)


def made_run() -> RunResults:
    change = LanguageChange(
        100, 0.01, *(Change(1.0 + i, 0.25) for i in range(5)),
        random=RandomChange((0.1, 0.3), (0.0, 0.2), 0.2, 0.1), own_to_english=4.0, own_to_random=None,
    )  # fmt: skip
    rows = (made_row("random", table="held-out loss", task="held-out loss"), made_row(p=None, delta_ci95=None))
    return RunResults(
        "run",
        made_provenance(RunSettings(LANGUAGES)),
        StageSplit(3, 1, 1),
        made_infos(),
        {lang: OriginalLoss(3.0, None if lang == "th" else 0.7) for lang in LANGUAGES},
        dict.fromkeys(("de", "th"), change),
        rows,
        made_matrix(),
    )


def made_matrix(languages: Sequence[str] = LANGUAGES) -> dict[str, dict[str, LossRise]]:
    """Every language most hurt by its own set; no interval for English, and fewer documents beside the diagonal."""
    return {
        off: {
            lang: LossRise(
                4.0 + i if lang == off else 0.25 * j, None if lang == "en" else (-0.5, 9.5), 8 if i == j else 2
            )
            for j, lang in enumerate(languages)
        }
        for i, off in enumerate(languages)
    }


def made_infos() -> dict[str, NeuronSetInfo]:
    whole, bare = NeuronSetInfo("12" * 8, 100, 480, "top_k:3", "all", "corpus", 4), NeuronSetInfo("34" * 8, 90, 480)
    return {"de": whole, "th": bare}


def made_table(task: str = "xcsqa", languages: Sequence[str] = LANGUAGES, **changes) -> TableResult:
    rows = (made_row("random", task=task, languages=tuple(languages[1:])), made_row(task=task))
    table = TableResult(
        "table",
        made_provenance(TableSettings(tuple(languages), 8), languages),
        4,
        "knowledge",
        TaskInfo(task, 1, "accuracy_sum"),
        StageSplit(3, 1, 1),
        made_infos(),
        {lang: {"accuracy_sum": 50.0, "accuracy_per_byte": 25.0} for lang in languages},
        rows,
    )
    return replace(table, **changes)


def made_grid(task: str = "xcsqa", languages: Sequence[str] = LANGUAGES) -> TableResult:
    rows = tuple(
        made_row(off=off, task=task, understanding=n1, generation=n2, delta=n1 + 0.5 * n2)
        for off in (("s_attn",), ("s_ffn",))
        for n1 in (1, 2)
        for n2 in (0, 1)
    )
    return made_table(task, languages, kind="grid", stages=None, rows=rows)


def made_tables() -> TablesResults:
    return TablesResults.of([made_table(), made_grid()])


def made_tuning(
    model: ModelInfo = MODEL, tasks: Sequence[str] = ("held-out loss", "xquad"), languages: Sequence[str] = LANGUAGES
) -> EnhanceResults:
    """What `mwork enhance` writes for several numbers of documents, with made-up numbers."""
    gains = {"lang-spec": 0.3, "random": 0.05}
    rows = tuple(
        TuningRow(
            "tuning", 6, task, model.source, kind, language, documents, 5, -3.2, -3.0, 0.01, gain, 0.01 - gain,
            (-0.1, 0.1), (gain - 0.05, gain + 0.05), None, 0.03, 24, 8, (language,), (gain,) * 5, 0.0, ("en",),
            TuningChange(gain, (gain - 0.1, gain + 0.1), 0.04) if kind == "lang-spec" else None, gen=True,
        )
        for task in tasks
        for language in languages[1:]
        for kind, base in gains.items()
        for documents, gain in ((100, base), (200, 1.3 * base), (400, 1.5 * base))
    )  # fmt: skip
    settings = EnhanceSettings((100, 200, 400), 5, 8, TuneSettings(learning_rate=1e-4))
    provenance = replace(made_provenance(settings, languages), model=model)
    measured = {task: dict(zip(languages, (-3.2, -3.3, -3.1), strict=True)) for task in tasks}
    sizes = {task: dict.fromkeys(languages, 8) for task in tasks}
    run = TuningRunInfo(100, 400, 30, 20, 3.3, 3.1, False, 0.99, (3.4, 3.2), ((10, 3.2), (20, 3.1)))
    items = {
        task: {lang: DataInfo(f"mwork-jax data, {task}.{lang}", 8, "cd" * 16) for lang in languages} for task in tasks
    }
    return EnhanceResults("enhance", provenance, measured, sizes, {"de lang-spec 400": run}, rows, items)


def made_lens(
    shares: Mapping[str, Sequence[Sequence[float]]] | None = None,
    leads: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> LensResults:
    """A lens from {prompt language: [own, English] by layer}, on as many layers as there are, and `none` for the rest;
    each language's first layers make an example too. leads: {prompt language: English's lead of each prompt}."""
    shares = shares or dict.fromkeys(("de", "th"), ((0.5, 0.125), (0.125, 0.5), (0.25, 0.25), (0.75, 0.125)))
    columns = (*LANGUAGES, "other", "unclear", "none")
    made = []
    for language, layers in shares.items():
        top = np.zeros((len(layers), len(columns)))
        top[:, columns.index(language)], top[:, 0] = np.transpose(layers)
        top[:, -1] = 1 - top.sum(axis=1)
        table = tuple(map(tuple, top.tolist()))
        made.append(LensShares(language, 0, 40, table, table, tuple((leads or {}).get(language, ()))))
    depth = len(made[0].top_k)
    settings = LensSettings(top=5)
    provenance = replace(made_provenance(settings, tuple(shares)), model=replace(MODEL, layers=depth - 1))
    word = (LensToken("Haus\n", "de", 0.5), LensToken(" the", "en", 1.0))
    examples = tuple(LensExample(lang, ("Das", " Haus"), (word,) * depth) for lang in shares)
    return LensResults("lens", provenance, LabelsInfo(columns, dict.fromkeys(columns, 10)), tuple(made), examples)


def made_steering() -> SteerResults:
    """Prompts in two languages, answers wanted in two others."""

    def row(kind: str, prompt: str, language: str, recipe: str | None = None, strength: float | None = None, **changes):
        values = {"layer": None, "forcing": 0.5, "relevance": 0.25, "score": 1 / 3, "n_items": 2, **changes}
        return SteerRow(kind, prompt, language, recipe, strength, reference_loss=2.0, english_loss=0.125,
                        repetition=0.0625, **values)  # fmt: skip

    grid, best = [], []
    change, beyond = SteerChange(0.25, (0.125, 0.375), 0.01), SteerChange(0.2, None, None)
    for prompt, language in (("en", "de"), ("en", "th"), ("de", "th")):
        grid += [row("steered", prompt, language, "patch", s, forcing=s / 4, n_items=4) for s in (1.0, 2.0)]
        grid += [row("steered", prompt, language, "diffmean", s, forcing=s / 3, layer=1) for s in (1.0, 2.0)]
        best += [row(kind, prompt, language) for kind in ("original", "instruction")]
        best.append(row("steered", prompt, language, "diffmean", 2.0, layer=1, beyond_original=change,
                        beyond_random=beyond))  # fmt: skip
        best.append(row("random", prompt, language, "diffmean", 2.0, layer=1, seeds=5))
    settings = SteerSettings(("de", "th"), ("en", "de"), ("patch", "diffmean"), seeds=5)
    provenance = made_provenance(settings)
    questions = {f"{lang} prompts": DataInfo(f"mwork-jax data, mgsm.{lang}", 2, "ef" * 16) for lang in ("en", "de")}
    return SteerResults(
        "steer",
        replace(provenance, data={**provenance.data, **questions}),
        made_infos(),
        tuple(grid),
        tuple(best),
        {"en": {"de diffmean 1": "Das Haus <b>"}},
    )


def made_lm_eval() -> LmEvalResults:
    """Two tasks, one with two filters, under two languages' sets, random ones and an intervention."""
    tasks = {
        "xnli_de": LmEvalTask("1.0", "multiple_choice", 2, 40, {"acc": True}),
        "sums": LmEvalTask("2", "generate_until", 0, 12, {"exact_match": True}),
    }
    conditions = [("original", "", "", None), ("steered", "", "diffmean 2", None)]
    for lang in ("de", "th"):
        conditions += [("own", lang, "under", None), ("random", lang, "under", 0), ("random", lang, "under", 1)]
    rows = [
        LmEvalRow(task, *condition, scores)
        for place, condition in enumerate(conditions)
        for task, scores in (
            ("xnli_de", (LmEvalScore("acc", "none", 0.5 - place / 64, 0.0625),)),
            (
                "sums",
                (LmEvalScore("exact_match", "whole", 0.25), LmEvalScore("exact_match", "number", place / 16, 0.125)),
            ),
        )
    ]
    settings = LmEvalSettings(tuple(tasks), ("de", "th"), "under", 2, 40)
    return LmEvalResults("lm_eval", made_provenance(settings, tuple(tasks)), tasks, made_infos(), tuple(rows))


def made_detection() -> DetectResults:
    scores = {lang: ScoresInfo(f"scores/{lang}.safetensors", 4, 100) for lang in LANGUAGES}
    return DetectResults("detect", made_provenance(DetectSettings()), scores)


def made_neurons(text: str = "Haus", layers: int = 3) -> NeuronResults:
    """Neurons of two sets in every layer, a feed-forward one and a query; `text` in the contexts and tokens."""
    readings = []
    for layer in range(layers):
        for group, index in (("attn_q", 7), ("ffn_up", 30 + layer)):
            ffn = group == "ffn_up"
            contexts = tuple(
                NeuronContext(2.5 - i, i, 9, f"before {text} ", f"{text}{i}", f" {'after ' * 30}\n") for i in range(3)
            )
            tokens = tuple(TokenWeight(f" {text}-{group}-{layer}", 0.5 - i) for i in range(10)) if ffn else None
            readings.append(
                NeuronReading(
                    ("ffn_up", "ffn_down") if ffn else (group,),
                    layer,
                    index,
                    {"de": 0.75} if layer else {"de": 0.75, "th": None},
                    tokens,
                    tokens,
                    {
                        lang: NeuronActivity(0.125 if ffn else None, () if lang == "en" else contexts)
                        for lang in LANGUAGES
                    },
                )
            )
    provenance = replace(made_provenance(NeuronSettings(("de", "th"))), model=replace(MODEL, layers=layers))
    return NeuronResults("neurons", provenance, made_infos(), tuple(readings))


def every_kind() -> dict[str, AnyResults]:
    """One result of each kind, every optional field filled somewhere."""
    results = (made_run(), made_tables(), made_tuning(), made_lens(), made_detection(), made_steering(), made_neurons(),
               made_lm_eval())  # fmt: skip
    return {one.kind: one for one in results}


EVERYWHERE = "under+s_attn+s_ffn+gen"


def made_sample(n, loss=1.0, language="de", section="table-2-xquad"):
    """An item that loses n * loss points with its own neurons off."""
    answers = (
        SampleAnswer("original", 50.0 + n, answer=f"Antwort {n}.", answer_language="de"),
        SampleAnswer("own", 1.0, language, "under", None, "?", None),
        SampleAnswer("own", 50.0 + n - n * loss, language, EVERYWHERE, None, "Answer\n<b>=1+1</b>", "en"),
        SampleAnswer("random", 49.0, "fr", EVERYWHERE, 0, "falsch", None),
        SampleAnswer("random", 49.5 + n, language, EVERYWHERE, 0, "مرحبا", "ar"),
    )
    return Sample(section, f"item-{n}", language, f"Frage {n}\u2028?\nAntwort:", ("ja",), answers)
