"""What the paper says of its tables (sections 3.3 to 3.6 and 4), and whether results support it.

A statement is one or several tests of numbers that a table has: a row's Delta, how far that is beyond matched random
sets, its change of English or of the other languages, or the difference of two rows. All of its tests must hold for it
to be supported (the largest p counts), and one that holds the other way round contradicts it. p values are two-sided
and corrected over all statements that can be tested (Holm), so that of studies in which nothing is true at most 5 %
have any that is supported or contradicted.

A statement that something hardly changes cannot be shown by a p: it is supported where the 95 % interval lies within
MARGIN points of 0, and contradicted where it lies outside; not corrected. Where not a single item changed there is no
variance to build an interval on: of n independent items all may be alike although a share of up to 3 / n changes. And
where a model's score is no more than the margin to begin with, it could not fall by more: nothing is decided then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mwork_jax.evaluate.evaluations import POINTS
from mwork_jax.evaluate.table_files import TABLES, TableSpec
from mwork_jax.intervene.stages import EVERYWHERE, StageSetting
from mwork_jax.metrics import corrected
from mwork_jax.results import DeltaRow, Difference, EnhanceResults, Interval, SetKind, TableResult

MARGIN = 2.0  # points; what counts as hardly any change, fixed before anything is measured
LEVEL = 0.05  # of the corrected p
_RULE_OF_THREE = 3.0  # of n items that are all alike: up to 3 / n may differ, with 95 % confidence
_POWER = 1.96 + 0.84  # standard errors that an effect must be away from 0 to be seen in 80 % of studies

Number = Literal["delta", "beyond", "eng", "n_eng"]
Kind = Literal["supported", "contradicted", "not decided", "not measured"]


@dataclass(frozen=True)
class RowOf:
    """A row of a table by what it switches off."""

    off: StageSetting
    neurons: SetKind = "lang-spec"

    def index(self, rows: Sequence[DeltaRow]) -> int | None:
        """Its place among rows; None where it is not there."""
        own = (self.off.under, self.off.s_attn, self.off.s_ffn, self.off.gen, self.neurons, 0.0, "lang-spec")
        for n, row in enumerate(rows):
            if (*row.off, row.neurons, row.scale, row.like) == own:
                return n
        return None


@dataclass(frozen=True)
class Test:
    """One number of a row, or of the difference of two rows: above 0 for sign 1, below for -1, within MARGIN of 0 for
    0."""

    number: Number
    row: RowOf
    sign: int
    less: RowOf | None = None

    __test__ = False  # no class of tests of pytest


@dataclass(frozen=True)
class Statement:
    """What the paper says. table: 6 for the tests of tuning, which have none here."""

    section: str
    words: str
    table: int
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Evidence:
    """What a test found: the number with its interval and p, None where they cannot be had, over so many clusters.
    printed: the mean of what the paper printed for it, None where it printed nothing. has_room: whether the original
    score, where the number is a change of one, is above the margin, so that it could fall."""

    value: float
    ci95: Interval | None
    p: float | None
    clusters: int
    printed: float | None = None
    has_room: bool = True

    @property
    def bounds(self) -> Interval | None:
        """The interval; of items that are all alike, what the rule of three leaves possible."""
        if self.ci95 != (0.0, 0.0):
            return self.ci95
        most = _RULE_OF_THREE * POINTS / self.clusters
        return -most, most


@dataclass(frozen=True)
class Verdict:
    """p: the statement's, corrected. evidence: of its weakest test. needed: how many clusters of items it would take to
    decide, for an effect as large as the paper's (where it printed one) or as the one that was measured."""

    statement: Statement
    kind: Kind
    p: float | None
    evidence: Evidence | None
    needed: int | None

    @property
    def words(self) -> str:
        """The verdict in a few words."""
        if self.kind != "not decided" or self.evidence is None:
            return self.kind
        if not self.evidence.has_room:
            return f"not decided: the original scores {MARGIN:g} points or less, and cannot fall"
        if self.evidence.ci95 is None:
            return "not decided: no interval, too few items or random sets"
        so_many = f"not decided with {self.evidence.clusters} independent items"
        return f"{so_many}; about {self.needed:,} would do" if self.needed else so_many


_UNDER, _GEN = RowOf(StageSetting(under=True)), RowOf(StageSetting(gen=True))
_S_ATTN, _S_FFN = RowOf(StageSetting(s_attn=True)), RowOf(StageSetting(s_ffn=True))
_SOLVING = RowOf(StageSetting(s_attn=True, s_ffn=True))
_NOT_SOLVING = RowOf(StageSetting(under=True, gen=True))
_NOT_S_ATTN = RowOf(StageSetting(under=True, s_ffn=True, gen=True))
_ALL, _RANDOM = RowOf(EVERYWHERE), RowOf(EVERYWHERE, "random")


def _selective(row: RowOf) -> tuple[Test, ...]:
    return Test("delta", row, 1), Test("beyond", row, 1)


def _both_fall(row: RowOf) -> tuple[Test, ...]:
    return Test("eng", row, -1), Test("n_eng", row, -1)


STATEMENTS = (
    Statement(
        "3.6", "With everything off that is activated for a language, generation in it falls, more than at random", 1,
        (Test("n_eng", _ALL, -1, _RANDOM),),
    ),
    Statement("3.3", "Under: the languages fall and English hardly, more so than at random", 2, _selective(_UNDER)),
    Statement("3.3", "Under separates the languages from English more than Gen does", 2,
              (Test("delta", _UNDER, 1, _GEN),)),
    Statement("3.3", "S-ATTN + S-FFN: English and the languages fall", 2, _both_fall(_SOLVING)),
    Statement("3.3", "Under: English changes by less than 2 points", 2, (Test("eng", _UNDER, 0),)),
    Statement("3.3", "Gen: English and the languages change by less than 2 points", 2,
              (Test("eng", _GEN, 0), Test("n_eng", _GEN, 0))),
    Statement("3.3", "Random neurons everywhere: English and the languages change by less than 2 points", 2,
              (Test("eng", _RANDOM, 0), Test("n_eng", _RANDOM, 0))),
    Statement("3.4", "Random neurons: those of S-ATTN + S-FFN cost more than those everywhere", 3, (
        Test("eng", RowOf(_SOLVING.off, "random"), -1, _RANDOM),
        Test("n_eng", RowOf(_SOLVING.off, "random"), -1, _RANDOM),
    )),
    Statement("3.4", "S-ATTN + S-FFN: English and the languages fall", 3, _both_fall(_SOLVING)),
    Statement("3.4", "Under + Gen: the languages fall more than English", 3, (Test("delta", _NOT_SOLVING, 1),)),
    Statement("3.4", "Under + S-FFN + Gen separates more than Under + Gen", 3,
              (Test("delta", _NOT_S_ATTN, 1, _NOT_SOLVING),)),
    Statement("3.5", "S-FFN: the languages fall and English hardly, more so than at random", 4, _selective(_S_FFN)),
    Statement("3.5", "S-FFN separates more than S-ATTN does", 4, (Test("delta", _S_FFN, 1, _S_ATTN),)),
    Statement("3.5", "S-ATTN: English and the languages fall", 4, _both_fall(_S_ATTN)),
    Statement("3.6", "Gen: the languages fall and English hardly, more so than at random", 5, _selective(_GEN)),
    Statement("4", "Tuning a language's own neurons helps it more than tuning random ones, in every language", 6, ()),
)  # fmt: skip


def verdicts(tables: Sequence[TableResult], tuning: EnhanceResults | None = None) -> tuple[Verdict, ...]:
    """A verdict on every statement, in the order of the paper. tables: those that were measured; each statement takes
    the first one of its number."""
    by_number: dict[int | str, TableResult] = {}
    for table in tables:
        if table.kind == "table":
            by_number.setdefault(table.table, table)
    found = [_evidence(statement, by_number, tuning) for statement in STATEMENTS]
    p_values = [_p(s, of) for s, of in zip(STATEMENTS, found, strict=True)]
    return tuple(map(_verdict, STATEMENTS, found, corrected(p_values)))


def _evidence(
    statement: Statement, tables: Mapping[int | str, TableResult], tuning: EnhanceResults | None
) -> list[tuple[Evidence, int]]:
    """What each test found, with its sign; empty where one of them was not measured."""
    if not statement.tests:
        return [] if tuning is None else [(one, 1) for one in _tuned(tuning)]
    table = tables.get(statement.table)
    found = [None if table is None else _of_test(test, table) for test in statement.tests]
    known = [one for one in found if one is not None]
    return [(one, t.sign) for one, t in zip(known, statement.tests, strict=True)] if len(known) == len(found) else []


def _of_test(test: Test, table: TableResult) -> Evidence | None:
    n = test.row.index(table.rows)
    if n is None:
        return None
    row, clusters = table.rows[n], table.rows[n].n_clusters
    printed = _printed(TABLES.get(table.table) if isinstance(table.table, int) else None, test)
    if test.less is not None:
        pair = (n, test.less.index(table.rows))
        contrast = next((one for one in table.contrasts if (one.first, one.second) == pair), None)
        by: Difference | None = None if contrast is None else getattr(contrast, test.number)
        return None if by is None else Evidence(by.change, by.ci95, by.p, clusters, printed)
    if test.number == "beyond":
        beyond = row.beyond_random
        return None if beyond is None else Evidence(beyond.delta, beyond.ci95, beyond.p, clusters, printed)
    if test.number == "delta":
        return None if row.delta is None else Evidence(row.delta, row.delta_ci95, row.p, clusters, printed)
    if test.number == "eng":
        if row.eng is None or row.delta_eng is None:
            return None
        has_room = row.eng - row.delta_eng > MARGIN
        return Evidence(row.delta_eng, row.delta_eng_ci95, row.p_eng, clusters, printed, has_room)
    has_room = row.n_eng - row.delta_n_eng > MARGIN
    return Evidence(row.delta_n_eng, row.delta_n_eng_ci95, row.p_n_eng, clusters, printed, has_room)


def _printed(table: TableSpec | None, test: Test) -> float | None:
    """What the paper printed for a test, mean over its models."""

    def mean(of: RowOf, number: str) -> float | None:
        for row in () if table is None else table.rows:
            if (row.setting, row.neurons) == (of.off, of.neurons) and row.printed:
                return float(np.mean([getattr(line, number) for line in row.printed.values()]))
        return None

    number = test.number if test.number in ("delta", "beyond") else f"delta_{test.number}"
    less = RowOf(test.row.off, "random") if number == "beyond" else test.less
    own = mean(test.row, "delta" if number == "beyond" else number)
    other = None if less is None else mean(less, "delta" if number == "beyond" else number)
    if own is None or (less is not None and other is None):
        return None
    return own - (other or 0.0)


def _tuned(tuning: EnhanceResults) -> list[Evidence]:
    """Each language's gain beyond random neurons, at the most documents, on the first measure."""
    own = [row for row in tuning.rows if row.neurons == "lang-spec" and row.own_beyond_random is not None]
    most, measure = max((row.documents for row in own), default=0), next((row.task for row in own), "")
    found = []
    for row in own:
        beyond = row.own_beyond_random
        if beyond is not None and (row.documents, row.task) == (most, measure):
            found.append(Evidence(beyond.change, beyond.ci95, beyond.p, row.n_clusters))
    return found


def _p(statement: Statement, found: Sequence[tuple[Evidence, int]]) -> float | None:
    """The p of a statement: the largest of its tests' where all of them point its way, so that all of them hold; else
    the smallest of those that point the other way, times their number, so that one of them holds. None where it
    is not tested by a p, or cannot be."""
    if not found or _is_within(statement) or any(one.p is None for one, _ in found):
        return None
    against = [one.p or 0.0 for one, sign in found if one.value * sign < 0]
    return min(1.0, len(found) * min(against)) if against else max(one.p or 0.0 for one, _ in found)


def _is_within(statement: Statement) -> bool:
    return any(test.sign == 0 for test in statement.tests)


def _verdict(statement: Statement, found: Sequence[tuple[Evidence, int]], p: float | None) -> Verdict:
    if not found:
        return Verdict(statement, "not measured", None, None, None)
    if _is_within(statement):
        weakest = max((one for one, _ in found), key=_weakness)
        kind = _within([one for one, _ in found])
        return Verdict(statement, kind, None, weakest, _needed(weakest, True) if kind == "not decided" else None)
    against = [one for one, sign in found if one.value * sign < 0]
    weakest = max(against or [one for one, _ in found], key=lambda one: 2.0 if one.p is None else one.p)
    weakest = min(against, key=lambda one: 2.0 if one.p is None else one.p) if against else weakest
    kind = "not decided"
    if p is not None and p < LEVEL:
        kind = "contradicted" if against else "supported"
    return Verdict(statement, kind, p, weakest, _needed(weakest, False) if kind == "not decided" else None)


def _weakness(one: Evidence) -> float:
    """How far a change may be from 0; the largest where nothing is decided."""
    return math.inf if one.bounds is None or not one.has_room else _farthest(one.bounds)


def _within(found: Sequence[Evidence]) -> Kind:
    if not all(one.has_room for one in found):
        return "not decided"
    intervals = [one.bounds for one in found]
    if any(ci is not None and (ci[0] > MARGIN or ci[1] < -MARGIN) for ci in intervals):
        return "contradicted"
    return "supported" if all(ci is not None and _farthest(ci) < MARGIN for ci in intervals) else "not decided"


def _farthest(interval: Interval) -> float:
    return max(abs(interval[0]), abs(interval[1]))


def _needed(one: Evidence, within: bool) -> int | None:
    """Clusters of items for a power of 80 %, from the variance that was measured; the spread of random sets, which more
    items do not lower, counts as if they did. None where no variance or no effect is known."""
    effect = MARGIN - abs(one.value) if within else one.value if one.printed is None else one.printed
    if within and one.ci95 == (0.0, 0.0):
        return math.floor(_RULE_OF_THREE * POINTS / MARGIN) + 1
    if one.ci95 is None or abs(effect) < 1e-9 or (within and effect <= 0) or one.clusters < 2:
        return None
    from scipy.special import stdtrit  # slow to import

    error = (one.ci95[1] - one.ci95[0]) / 2 / float(stdtrit(one.clusters - 1, 0.975))
    needed = one.clusters * (_POWER * error / abs(effect)) ** 2
    return math.ceil(needed) if one.clusters < needed < 1e7 else None
