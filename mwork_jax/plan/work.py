"""How much the paper's full tables are: tokens of every stage, from the sizes of the data sets. Assumed."""

from __future__ import annotations

from dataclasses import dataclass

from mwork_jax.evaluate.table_files import TABLES

_LANGUAGES = 11  # English and ten others
_SEEDS = 5  # random controls for each language
_DOCUMENTS, _LENGTH = 1000, 512  # to find each language's neurons on
_TUNING = (100, 200, 400, 800)  # documents of Table 6
_TUNING_SEEDS, _EPOCHS = 3, 3
# Items of the test sets (validation for X-CSQA, whose test keys are hidden), with the tokens of a prompt and of an
# answer that a model of this kind takes for them; assumed, as tokenizers differ.
_ITEMS = {
    "xquad": (1190, 300, 32),
    "mgsm": (250, 800, 256),
    "xcsqa": (1000, 5 * 60, 0),  # five choices, each read after the question
    "xlsum": (500, 700, 64),
}


@dataclass(frozen=True)
class Work:
    """Tokens that a stage works through for the full tables, and in words what that is."""

    tokens: float
    assumed: str


def full_tables(stage: str) -> Work:
    """detect: neurons of every language. evaluate: Table 4. generate: Tables 2, 3 and 5. enhance: Table 6."""
    if stage == "detect":
        words = f"{_LANGUAGES} languages x {_DOCUMENTS} documents x {_LENGTH} tokens"
        return Work(_LANGUAGES * _DOCUMENTS * _LENGTH, words)
    if stage == "enhance":
        runs = (_LANGUAGES - 1) * 2 * _TUNING_SEEDS
        words = (
            f"Table 6: {_LANGUAGES - 1} languages x {', '.join(map(str, _TUNING))} documents of {_LENGTH} tokens x "
            f"{_EPOCHS} epochs x {_TUNING_SEEDS} seeds, own and random neurons"
        )
        return Work(runs * sum(_TUNING) * _LENGTH * _EPOCHS, words)
    tokens, named = 0.0, []
    for table in TABLES.values():
        items, prompt, new = _ITEMS[table.task]
        if (new == 0) != (stage == "evaluate"):
            continue
        masks = sum(_SEEDS if row.neurons == "random" else 1 for row in table.rows)
        # Each other language's masks on its own items and on English ones, and the original model on all languages.
        passes = (_LANGUAGES - 1) * masks * 2 + _LANGUAGES
        tokens += passes * items * (new or prompt)
        named.append(f"Table {table.name}: {masks} masks a language, {items} items of {prompt} + {new} tokens")
    return Work(tokens, f"{_LANGUAGES} languages, {_SEEDS} random seeds; " + "; ".join(named))
