"""Tables 2 to 5 of the paper as data: which task, which parts are off, and what the paper printed.

The printed numbers are copied as they are, slips included, to be shown beside a result; nothing is computed from them.
In the paper's Table 4 the word "Mistral" stands one row late; here each model has its five rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mwork_jax.errors import InputError
from mwork_jax.evaluate.delta_rows import RowSpec
from mwork_jax.intervene.stages import EVERYWHERE, StageSetting
from mwork_jax.results import NeuronKind


@dataclass(frozen=True)
class Printed:
    """A line of a printed table, in points of 100: scores after deactivation, their changes, and Delta."""

    eng: float
    n_eng: float
    delta_eng: float
    delta_n_eng: float
    delta: float


@dataclass(frozen=True)
class PaperRow(RowSpec):
    """A row with what was printed for each model."""

    printed: Mapping[str, Printed]


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables. task: a name of `tasks.TASKS`; stand_in: the one to take where its data is not at
    hand, "" where there is none."""

    number: int
    stage: str
    task: str
    stand_in: str
    rows: tuple[PaperRow, ...]


_Line = tuple[float, float, float, float, float]


def _row(neurons: NeuronKind, setting: StageSetting, vicuna: _Line, mistral: _Line) -> PaperRow:
    return PaperRow(setting, neurons, {"Vicuna": Printed(*vicuna), "Mistral": Printed(*mistral)})


_UNDER, _GEN = StageSetting(under=True), StageSetting(gen=True)
_S_ATTN, _S_FFN, _SOLVING = StageSetting(s_attn=True), StageSetting(s_ffn=True), StageSetting(s_attn=True, s_ffn=True)
_NOT_SOLVING, _NOT_S_ATTN = StageSetting(under=True, gen=True), StageSetting(under=True, s_ffn=True, gen=True)

_UNDERSTANDING = (
    _row("random", _UNDER, (57.8, 53.9, 0.3, -0.1, 0.4), (58.1, 55.5, 1.0, -0.2, 1.2)),
    _row("random", EVERYWHERE, (57.9, 54.2, 0.4, 0.3, 0.1), (57.6, 55.5, 0.5, -0.2, 0.7)),
    _row("lang-spec", _SOLVING, (40.9, 38.6, -15.9, -15.3, -0.6), (53.2, 47.0, -3.9, -8.7, 4.8)),
    _row("lang-spec", _GEN, (57.9, 52.8, -0.4, -1.1, 0.7), (56.4, 54.6, -0.7, -1.0, 0.3)),
    _row("lang-spec", _UNDER, (56.5, 46.0, -0.5, -7.9, 7.4), (56.2, 48.3, -0.9, -7.4, 6.5)),
)
_REASONING = (
    _row("random", _S_ATTN, (20.0, 11.3, -0.4, -1.8, 1.4), (40.8, 23.4, -5.2, -2.9, -2.3)),
    _row("random", _SOLVING, (18.4, 12.2, -2.0, -1.0, -1.0), (39.2, 24.0, -6.8, -2.3, -4.5)),
    _row("random", EVERYWHERE, (19.6, 12.5, -0.8, -0.7, -0.1), (45.2, 26.8, -0.8, 0.5, -1.3)),
    _row("lang-spec", _SOLVING, (7.2, 3.4, -13.2, -9.8, -3.4), (38.2, 18.4, -7.8, -7.9, 0.1)),
    _row("lang-spec", _NOT_SOLVING, (18.1, 8.3, -2.3, -4.9, 2.6), (44.0, 18.1, -2.0, -8.2, 6.2)),
    _row("lang-spec", _NOT_S_ATTN, (19.0, 7.8, -1.4, -5.4, 4.0), (46.2, 18.3, 0.2, -8.0, 8.2)),
)
_KNOWLEDGE = (
    _row("random", _S_FFN, (57.5, 39.5, -0.3, 0.0, -0.3), (61.0, 37.0, -0.3, -0.5, 0.2)),
    _row("random", _SOLVING, (56.0, 38.7, -1.8, -0.8, -1.0), (60.7, 36.3, -0.6, -1.2, 0.6)),
    _row("random", EVERYWHERE, (57.7, 39.6, -0.1, 0.1, -0.2), (61.8, 37.4, 0.1, -0.1, 0.2)),
    _row("lang-spec", _S_ATTN, (33.7, 30.3, -24.1, -9.2, -14.9), (51.2, 28.9, -10.1, -8.6, -1.5)),
    _row("lang-spec", _S_FFN, (57.5, 37.5, -0.3, -2.0, 1.7), (61.2, 35.1, -0.1, -2.4, 2.3)),
)
_GENERATION = (
    _row("random", _GEN, (13.2, 26.8, 0.1, 0.1, 0.0), (13.6, 25.9, 0.1, 0.1, 0.0)),
    _row("random", EVERYWHERE, (13.0, 26.7, -0.1, 0.0, -0.1), (13.6, 25.7, 0.1, -0.2, 0.3)),
    _row("lang-spec", _GEN, (13.1, 25.7, 0.0, -1.1, 1.1), (13.8, 24.3, 0.3, -1.5, 1.8)),
)

TABLES = {
    2: PaperTable(2, "understanding", "xquad", "", _UNDERSTANDING),
    3: PaperTable(3, "reasoning", "mgsm", "", _REASONING),
    4: PaperTable(4, "knowledge", "xcsqa", "xcopa", _KNOWLEDGE),
    5: PaperTable(5, "generation", "xlsum", "headlines", _GENERATION),
}


def tables_named(which: str) -> tuple[PaperTable, ...]:
    """The tables that "2", "3", "4", "5" or "all" names; InputError for anything else."""
    if which == "all":
        return tuple(TABLES.values())
    if which not in {str(number) for number in TABLES}:
        raise InputError(f"table {which!r} is not one of the paper's; choose {', '.join(map(str, TABLES))} or all")
    return (TABLES[int(which)],)
