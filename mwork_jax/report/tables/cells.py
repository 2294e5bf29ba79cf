"""How numbers, intervals and kinds of sets are written in tables."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS
from mwork_jax.results import DeltaRow, Interval, SetKind, TuningRow

NONE = "–"
STAGE_TITLES = ("Under", "S-ATTN", "S-FFN", "Gen")  # in the order of `DeltaRow.off`


def p_text(p: float | None) -> str:
    if p is None:
        return NONE
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0")


# Columns of a CSV file that would not tell what they are.
_COLUMNS = {
    "under": "under_off", "s_attn": "s_attn_off", "s_ffn": "s_ffn_off", "gen": "gen_off",
    "understanding": "n1_layers", "generation": "n2_layers",
}  # fmt: skip


def record_of(row: DeltaRow | TuningRow) -> dict[str, object]:
    """A result row as flat values."""
    return flat(msgspec.to_builtins(row))


def flat(row: Mapping[str, object]) -> dict[str, object]:
    """An interval as two values, a list as words, an object as its fields, with names that say what they are."""
    values: dict[str, object] = {}
    for key, value in row.items():
        if key.endswith("ci95"):
            values[f"{key}_low"], values[f"{key}_high"] = value if isinstance(value, list | tuple) else (None, None)
        elif isinstance(value, Mapping):
            values |= {f"{key}_{inner}": x for inner, x in flat(value).items()}
        else:
            values[_COLUMNS.get(key, key)] = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return values


def kind_title(neurons: SetKind) -> str:
    return {"random": "Random", "lang-spec": "Lang-Spec"}.get(neurons, neurons.capitalize())


def interval_text(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return NONE
    low, high = interval
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


def score_of(measure: str) -> str:
    """What a measure counts; more is better."""
    return "minus nats per token" if measure == HELD_OUT_LOSS else "points"
