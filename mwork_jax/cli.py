"""The command `mwork`. Results go to stdout and to files, progress to stderr.

What the user got wrong is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from mwork_jax.corpus import LANGUAGES, Corpus, encoded, own_corpus, read_corpus
from mwork_jax.deactivate import StageSplit
from mwork_jax.detect import NeuronScores
from mwork_jax.errors import InputError
from mwork_jax.files import output_folder, read_json, write_json, write_text
from mwork_jax.load import load_model
from mwork_jax.metrics import ENGLISH
from mwork_jax.neurons import NeuronSet
from mwork_jax.progress import Progress
from mwork_jax.report import printable, table_report, text_report
from mwork_jax.run import DETECTION_COST, RunSettings, choose_documents, kept_scores, run
from mwork_jax.select import DEFAULT_RULE, MODES, Rule, select_neurons
from mwork_jax.sweep import SweepSettings, prepare, run_table
from mwork_jax.tables import tables_named
from mwork_jax.tasks import task_named

_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        chosen = _parser().parse_args(arguments)
        chosen.command(chosen)
    except InputError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a folder taken away: the files written so far are whole
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("\nmwork: interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _fail(message: str) -> int:
    line = " ".join(message.split())
    print(printable(f"mwork: {line}", getattr(sys.stderr, "encoding", None)), file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mwork", description="Find, switch off and measure the language-specific neurons of a language model."
    )
    commands = parser.add_subparsers(title="commands", required=True, parser_class=_Parser, metavar="COMMAND")
    _add_run(commands)
    _add_detect(commands)
    _add_select(commands)
    _add_evaluate(commands)
    return parser


def _command(commands: Any, name: str, function: Any, what: str, example: str) -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        name, help=what, description=what, epilog=f"example:\n  {example}", formatter_class=layout
    )
    parser.set_defaults(command=function)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="gemma3-270m",
        help="a folder in Hugging Face layout, a .gguf file, a Hub id, or gemma3-270m (the default)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of weights and matrix operands; default: what is fast here"
    )


def _add_run(commands: Any) -> None:
    what = "the whole loop: find each language's neurons, switch them off, measure the loss, print the tables"
    parser = _command(commands, "run", _run, what, "mwork run --model gemma3-270m --languages en,de,th --out results")
    _add_model(parser)
    parser.add_argument("--out", default="mwork-results", help="output folder (default: mwork-results)")
    parser.add_argument("--languages", help="comma-separated codes, en among them (default: all that the data has)")
    parser.add_argument("--documents", type=int, help="documents per language to find neurons on (default: 32)")
    parser.add_argument("--held-out", type=int, help="other documents per language to measure on (default: 12)")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="LANG=FILE",
        help="own documents, text or JSONL: the first --documents find neurons, the next --held-out measure",
    )
    _add_rule(parser)
    parser.add_argument("--seeds", type=int, help="random controls per language (default: 5)")
    parser.add_argument("--n1", type=int, help="layers of the understanding stage (default: a quarter)")
    parser.add_argument("--n2", type=int, help="layers of the generation stage (default: an eighth)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longer documents are cut here (default: 512)")
    parser.add_argument(
        "--quick", action="store_true", help="a first look: few documents, two seeds, and en, de, zh unless --languages"
    )


def _add_rule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rule",
        default=DEFAULT_RULE,
        help=f"epsilon:X, top_k:K or top_fraction:F, each with @SHARE (default: {DEFAULT_RULE})",
    )
    parser.add_argument("--mode", default=MODES[0], help=f"{', '.join(MODES)} (default: {MODES[0]})")


def _add_detect(commands: Any) -> None:
    what = "score every neuron on each language's documents"
    example = "mwork detect --model gemma3-270m --corpus en=en.txt --corpus de=de.jsonl --out results"
    parser = _command(commands, "detect", _detect, what, example)
    _add_model(parser)
    parser.add_argument(
        "--corpus",
        action="append",
        required=True,
        metavar="LANG=FILE",
        help="one per language: text or JSONL with a 'text'",
    )
    parser.add_argument(
        "--out", default="mwork-results", help="output folder; scores go to OUT/scores (default: mwork-results)"
    )
    parser.add_argument("--documents", type=int, help="use the first so many documents of each corpus (default: all)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longer documents are cut here (default: 512)")
    parser.add_argument("--include-bos", action="store_true", help="count the BOS position in the norms")


def _add_select(commands: Any) -> None:
    what = "choose each language's neurons from the scores of `mwork detect` or `mwork run`"
    parser = _command(
        commands, "select", _select, what, "mwork select results --rule top_fraction:0.1 --mode minus_english"
    )
    parser.add_argument("folder", help="the folder with scores/LANG.safetensors; neurons go to FOLDER/neurons")
    _add_rule(parser)


def _add_evaluate(commands: Any) -> None:
    what = "one of the paper's Tables 2 to 5, or all: a task under every deactivation setting"
    example = "mwork evaluate --table 2 --data xquad --languages en,de --neurons results --items 50 --out tables"
    parser = _command(commands, "evaluate", _evaluate, what, example)
    _add_model(parser)
    tables = "2 (understanding), 3 (reasoning), 4 (knowledge), 5 (generation) or all"
    parser.add_argument("--table", required=True, help=tables)
    parser.add_argument("--out", default="mwork-tables", help="output folder (default: mwork-tables)")
    parser.add_argument(
        "--neurons",
        default="mwork-results",
        help="folder of `mwork run` or `mwork select`, with neurons/LANG.json (default: mwork-results)",
    )
    parser.add_argument("--data", help="official files, or a folder of them (default: the project's own small set)")
    parser.add_argument("--languages", default="en,de", help="comma-separated codes, en among them (default: en,de)")
    parser.add_argument("--task", help="another task for the table, such as xcopa or headlines")
    parser.add_argument("--items", type=int, help="score the first so many items of each language (default: all)")
    parser.add_argument("--shots", type=int, default=0, help="worked examples before each item (default: 0)")
    parser.add_argument("--seeds", type=int, default=5, help="random controls per language (default: 5)")
    parser.add_argument("--n1", type=int, help="layers of the understanding stage (default: a quarter)")
    parser.add_argument("--n2", type=int, help="layers of the generation stage (default: an eighth)")


def _run(chosen: argparse.Namespace) -> None:
    settings, corpora = _run_settings(chosen)
    out = output_folder(chosen.out)
    model = load_model(chosen.model, dtype=chosen.dtype)
    settings.split(model.config.num_layers)
    results = run(model, corpora, settings, out)
    text = text_report(results)
    write_text(out / "table.txt", text + "\n")
    if chosen.json:
        print(json.dumps(results))
    else:
        print(printable(text, getattr(sys.stdout, "encoding", None)))
        print(f"\nEverything is in {out}: results.json, table.txt, neurons/, scores/.")


def _run_settings(chosen: argparse.Namespace) -> tuple[RunSettings, dict[str, Corpus]]:
    """The settings and the documents, checked before the model takes its time to load."""
    Rule.parse(chosen.rule)
    _one_of("--mode", chosen.mode, MODES)
    _at_least("--seeds", 1 if chosen.seeds is None else chosen.seeds, 1)
    _at_least("--max-tokens", chosen.max_tokens, 2)
    files = _pairs("--data", chosen.data) if chosen.data else {}
    available = tuple(files) or (("en", "de", "zh") if chosen.quick else LANGUAGES)
    languages = available if chosen.languages is None else _languages(chosen.languages)
    settings = RunSettings(
        languages=languages,
        rule=chosen.rule,
        mode=chosen.mode,
        n1=chosen.n1,
        n2=chosen.n2,
        max_tokens=chosen.max_tokens,
    )
    if chosen.quick:
        settings = settings.quick()
    given = {"documents": chosen.documents, "held_out": chosen.held_out, "seeds": chosen.seeds}
    settings = _replace_given(settings, given)
    if files and not set(languages) <= set(files):
        missing = ", ".join(sorted(set(languages) - set(files)))
        raise InputError(f"--data has no documents for {missing!r}; it has {', '.join(files)}")
    if files:
        corpora = {language: _own_documents(language, files[language], settings.documents) for language in languages}
    else:
        corpora = {language: own_corpus(language) for language in languages}
    choose_documents(corpora, settings)
    return settings, corpora


def _own_documents(language: str, path: str, documents: int) -> Corpus:
    """The first `documents` of a file find neurons, the others are there to measure on."""
    texts = read_corpus(path)
    return Corpus(language, tuple(texts[:documents]), tuple(texts[documents:]), path)


def _replace_given(settings: RunSettings, given: dict[str, Any]) -> RunSettings:
    """The settings with those values that were given on the command line."""
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _detect(chosen: argparse.Namespace) -> None:
    _at_least("--max-tokens", chosen.max_tokens, 2)
    files = _pairs("--corpus", chosen.corpus)
    corpora = {language: _first(read_corpus(path), chosen.documents, path) for language, path in files.items()}
    out = output_folder(chosen.out)
    model = load_model(chosen.model, dtype=chosen.dtype)
    # All of them before any work, so that a document that cannot be used is found at once.
    ready = {lang: list(encoded(model, d, chosen.max_tokens, where=files[lang])) for lang, d in corpora.items()}
    written = {}
    with Progress(DETECTION_COST * sum(map(len, ready.values()))) as bar:
        for lang, documents in ready.items():
            bos = chosen.include_bos
            kept = kept_scores(model, lang, documents, files[lang], chosen.max_tokens, out, bar, include_bos=bos)
            path = out / "scores" / f"{lang}.safetensors"
            written[lang] = {"file": str(path), "documents": kept.documents, "tokens": kept.tokens}
    lines = [f"{lang}: {w['documents']} documents, {w['tokens']} tokens -> {w['file']}" for lang, w in written.items()]
    _print(chosen, written, lines)


def _first(documents: list[str], count: int | None, where: str) -> list[str]:
    if count is None:
        return documents
    _at_least("--documents", count, 1)
    if count > len(documents):
        raise InputError(f"{where}: {count} documents asked, there are {len(documents)}")
    return documents[:count]


def _evaluate(chosen: argparse.Namespace) -> None:
    _at_least("--seeds", chosen.seeds, 1)
    settings = SweepSettings(_languages(chosen.languages), chosen.items, chosen.shots, chosen.seeds)
    tables = tables_named(chosen.table)
    exams = [prepare(task_named(chosen.task or table.task), chosen.data, settings) for table in tables]
    out = output_folder(chosen.out)
    if (out / "results.json").exists() and "tables" not in read_json(out / "results.json"):
        raise InputError(f"{out}: holds the results of `mwork run`; choose another output folder with --out")
    folder = Path(chosen.neurons) / "neurons"
    paths = {lang: folder / f"{lang}.json" for lang in settings.languages if lang != ENGLISH}
    absent = [str(path) for path in paths.values() if not path.exists()]
    if absent:
        raise InputError(f"{absent[0]}: no such file; `mwork run` and `mwork select` write it, --neurons says where")
    found = {lang: NeuronSet.load(path) for lang, path in paths.items()}
    model = load_model(chosen.model, dtype=chosen.dtype)
    split = StageSplit.of(model.config.num_layers, chosen.n1, chosen.n2)
    done = [run_table(model, t, e, found, split, settings, out) for t, e in zip(tables, exams, strict=True)]
    results = {"format": "mwork-results-1", "tables": done, "rows": [row for table in done for row in table["rows"]]}
    write_json(out / "results.json", results)
    text = "\n\n".join(map(table_report, done))
    if chosen.json:
        print(json.dumps(results))
    else:
        print(printable(text, getattr(sys.stdout, "encoding", None)))


def _select(chosen: argparse.Namespace) -> None:
    folder = Path(chosen.folder)
    paths = sorted((folder / "scores").glob("*.safetensors"))
    if not paths:
        raise InputError(f"{folder}: no scores/LANG.safetensors in it; `mwork detect` or `mwork run` writes them")
    found = select_neurons({p.stem: NeuronScores.load(p) for p in paths}, chosen.rule, chosen.mode)
    written = {}
    for language, neurons in found.items():
        path = folder / "neurons" / f"{language}.json"
        neurons.save(path)
        written[language] = {"file": str(path), "count": neurons.count(), "share": neurons.count() / neurons.total()}
    _print(
        chosen,
        written,
        [f"{lang}: {w['count']:,} neurons ({100 * w['share']:.2f}%) -> {w['file']}" for lang, w in written.items()],
    )


def _print(chosen: argparse.Namespace, value: Any, lines: list[str]) -> None:
    print(json.dumps(value) if chosen.json else "\n".join(lines))


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """LANG=FILE options as a table."""
    pairs: dict[str, str] = {}
    for item in given:
        language, equals, path = item.partition("=")
        if not (language and equals and path):
            raise InputError(f"{option} {item}: LANG=FILE is needed, as in {option} de=german.txt")
        if language in pairs:
            raise InputError(f"{option} {item}: {language!r} is given twice")
        pairs[_code(option, language)] = path
    return pairs


def _languages(text: str) -> tuple[str, ...]:
    """Comma-separated language codes, each once."""
    return tuple(dict.fromkeys(_code("--languages", part.strip()) for part in text.split(",")))


def _code(option: str, language: str) -> str:
    """A language code, which names files too. InputError for anything that is not letters, digits, - and _."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", language):
        raise InputError(f"{option}: {language!r} is not a language code; letters, digits, - and _, as in en,de,zh-TW")
    return language


def _one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{option} {value}: it must be one of {', '.join(allowed)}")


def _at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{option} {value}: it must be at least {least}")


if __name__ == "__main__":
    sys.exit(main())
