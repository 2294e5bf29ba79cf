"""What the model says: a few items of each section side by side, from the saved answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from mwork_jax.report.language_names import name_of
from mwork_jax.report.names import slug
from mwork_jax.report.sections import Section
from mwork_jax.report.table import Table
from mwork_jax.samples import Sample, SampleAnswer, SideBySide, side_by_side

_SHOWN = 240  # characters of a prompt or an answer


def samples_section(samples: Sequence[Sample]) -> Iterator[Section]:
    """One section with a table for each of the tables that were measured; none where no answers were saved."""
    tables = tuple(samples_tables(samples))
    if tables:
        has_answers = any(answer.answer for sample in samples for answer in sample.answers)
        title = "What the model says" if has_answers else "Document by document"
        words = (
            "The same items by the original model, under the change, and under a random one of the same size; spread "
            "evenly from what loses most to what gains. All are in samples/*.jsonl.",
        )
        yield Section("samples", title, words, (), tables)


def samples_tables(samples: Sequence[Sample]) -> Iterator[Table]:
    """The items side by side, for each section that has some measured under all three."""
    for section in dict.fromkeys(sample.section for sample in samples):
        pairs = side_by_side([sample for sample in samples if sample.section == section])
        if not pairs:
            continue
        changed = "steered" if pairs[0].own.under == "steered" else "own neurons off"
        changes = " or ".join(dict.fromkeys(pair.own.setting for pair in pairs if pair.own.setting))
        yield Table(
            f"samples-{slug(section)}",
            f"Side by side: {section}",
            ("language", "prompt", "original", changed, "random"),
            tuple(map(_row, pairs)),
            words=5,
            note=f"Each answer with its score, higher is better, and its language. Changed: {changes}.",
            records=tuple(map(_record, pairs)),
        )


def _row(pair: SideBySide) -> tuple[str, ...]:
    sample = pair.sample
    prompt = sample.prompt.strip()
    prompt = prompt if len(prompt) <= _SHOWN else f"…{prompt[-_SHOWN:]}"  # it ends with the question
    return name_of(sample.language), _isolated(prompt), *map(_shown, (pair.original, pair.own, pair.random))


def _shown(answer: SampleAnswer) -> str:
    if answer.answer is None:
        return f"{answer.score:.3g}"
    text = answer.answer if len(answer.answer) <= _SHOWN else f"{answer.answer[:_SHOWN]}…"
    language = f", {answer.answer_language}" if answer.answer_language else ""
    return f"{_isolated(text) if text else '(nothing)'} [{answer.score:.3g}{language}]"


def _isolated(text: str) -> str:
    """One line that leaves what stands around it in place where it is written from right to left."""
    return f"\u2068{' ⏎ '.join(text.split(chr(10)))}\u2069"


def _record(pair: SideBySide) -> dict[str, object]:
    sample = msgspec.to_builtins(pair.sample)
    record = {name: sample[name] for name in ("section", "item", "language", "prompt")}
    for under in ("original", "own", "random"):
        answer = getattr(pair, under)
        values = {"answer": answer.answer, "score": answer.score, "answer_language": answer.answer_language}
        values |= {} if under == "original" else {"under": answer.under, "off": answer.setting}
        record |= {f"{under}_{name}": value for name, value in values.items()}
    return record
