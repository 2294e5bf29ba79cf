"""Tables as data: a TOML file says which task, which languages, which sets are switched off in which parts, how many
random controls there are, and which statistics. The paper's Tables 2 to 5 are such files, in `tables/`.

The printed numbers are copied as they are, slips included, to be shown beside a result; nothing that is measured is
computed from them. In the paper's Table 4 the word "Mistral" stands one row late; here each model has its five rows.
docs/tables.md describes the format.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import NoReturn, TypeVar, cast, get_args

from mwork_jax.errors import InputError
from mwork_jax.evaluate.delta_rows import STATISTICS, RowSpec
from mwork_jax.evaluate.evaluations import HELD_OUT_LOSS
from mwork_jax.evaluate.tasks import TASKS
from mwork_jax.intervene.stages import EACH_STAGE, StageSetting
from mwork_jax.results import SetKind
from mwork_jax.runtime.files import read_text
from mwork_jax.select.modes import MODES
from mwork_jax.settings import TableSettings

PARTS = tuple(EACH_STAGE)
SUFFIX = ".toml"
_KINDS: tuple[str, ...] = get_args(SetKind)
_NOT_RANDOM = tuple(kind for kind in _KINDS if kind != "random")
_ROUNDING = 0.11  # printed with one decimal, a score and its change may disagree by so much
T = TypeVar("T")


@dataclass(frozen=True)
class Printed:
    """A line of a printed table, in points of 100: scores after deactivation, their changes, and Delta."""

    eng: float
    n_eng: float
    delta_eng: float
    delta_n_eng: float
    delta: float


@dataclass(frozen=True)
class TableRow(RowSpec):
    """A row with what was printed for each model: {model: its line}, empty where nothing was."""

    printed: Mapping[str, Printed] = field(default_factory=dict)


@dataclass(frozen=True)
class TableSpec:
    """A table that can be measured.

    name: a number of the paper's, or a word. stage: what it tests, in words, "" where that goes without saying. task: a
    name of `tasks.TASKS`, or `HELD_OUT_LOSS`. stand_in: the task to take where its data is not at hand, "" where there
    is none. statistics: of `STATISTICS`, those that its rows have beside Delta. contrasts: pairs of rows, from 0, that
    are compared with each other. mode: the mode that its sets are selected with, "" for any. The others are what the
    file says of `TableSettings`, None where it leaves them open.
    """

    name: int | str
    stage: str
    task: str
    stand_in: str
    rows: tuple[TableRow, ...]
    statistics: tuple[str, ...] = STATISTICS
    contrasts: tuple[tuple[int, int], ...] = ()
    mode: str = ""
    languages: tuple[str, ...] | None = None
    items: int | None = None
    shots: int | None = None
    seeds: int | None = None
    n1: tuple[int, ...] | None = None
    n2: tuple[int, ...] | None = None

    def settings(self, given: TableSettings, explicit: Sequence[str]) -> TableSettings:
        """The settings of a run: `explicit` names the fields of `given` that were asked for; the others are the file's,
        where it says them."""
        own = {name: getattr(self, name) for name in _SETTINGS if name not in explicit}
        return replace(given, **{name: value for name, value in own.items() if value is not None})


_SETTINGS = ("languages", "items", "shots", "seeds", "n1", "n2")


def read_table(path: str | Path) -> TableSpec:
    """The table of a TOML file. Raises InputError, `FILE:LINE: what, what would be right`, for one that is not of the
    format."""
    return parse_table(read_text(path), str(path))


def parse_table(text: str, where: str) -> TableSpec:
    """The table that a TOML text describes; `where` is what errors call it."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        number = int(line[1]) if line else text.count("\n") + 1  # "at end of document"
        reason = str(error).partition(" (at ")[0]
        raise InputError(f"{where}:{number}: no TOML ({reason})") from None
    except (RecursionError, ValueError) as error:  # nested beyond reason, a number of thousands of digits
        raise InputError(f"{where}:1: no TOML that can be read ({' '.join(str(error).split()):.100})") from None
    whole = _Section(values, where, _Lines(text), ())
    whole.only("table", "stage", "task", "stand_in", "mode", "statistics", "contrasts", "rows", *_SETTINGS)
    rows = [_row(section) for section in whole.sections("rows")]
    spec = TableSpec(
        name=_name(whole),
        stage=whole.optional("stage", whole.text) or "",
        task=whole.one_of("task", (*TASKS, HELD_OUT_LOSS)),
        stand_in=whole.optional("stand_in", lambda key: whole.one_of(key, tuple(TASKS))) or "",
        rows=tuple(row for row, _ in rows),
        statistics=_statistics(whole),
        contrasts=whole.optional("contrasts", lambda key: _contrasts(whole, len(rows))) or (),
        mode=whole.optional("mode", lambda key: whole.one_of(key, MODES)) or "",
        languages=whole.optional("languages", lambda key: whole.words(key, re.compile(r"[A-Za-z0-9_-]+"))),
        items=whole.optional("items", lambda key: whole.count(key, 1)),
        shots=whole.optional("shots", lambda key: whole.count(key, 0)),
        seeds=whole.optional("seeds", lambda key: whole.count(key, 1)),
        n1=whole.optional("n1", whole.counts),
        n2=whole.optional("n2", whole.counts),
    )
    _check_rows(spec.rows, [section for _, section in rows])
    return spec


def _name(whole: _Section) -> int | str:
    """The table's name: a whole number, or a word that can be part of a file's name; the file's own by default."""
    if "table" not in whole.values:
        return re.sub(r"[^a-z0-9]+", "-", Path(whole.where).stem.lower()).strip("-") or "table"
    value = whole.values["table"]
    if isinstance(value, str) and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value) and len(value) <= 40:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000:
        return value
    whole.fail("table", "a number, or a word of small letters, digits and - is needed, as in sharing")


def _statistics(whole: _Section) -> tuple[str, ...]:
    if "statistics" not in whole.values:
        return STATISTICS
    return tuple(whole.choices("statistics", STATISTICS))


def _contrasts(whole: _Section, rows: int) -> tuple[tuple[int, int], ...]:
    """Pairs of rows, numbered from 1 in the file."""
    pairs = whole.values["contrasts"]
    found = []
    for pair in pairs if isinstance(pairs, list) and pairs else [None]:
        numbers = [n for n in pair if isinstance(n, int) and 1 <= n <= rows] if isinstance(pair, list) else []
        if len(numbers) != 2 or len(set(numbers)) != 2:
            whole.fail("contrasts", f"a list of pairs of rows is needed, from 1 to {rows}, as in [[2, 1]]")
        found.append((numbers[0] - 1, numbers[1] - 1))
    return tuple(found)


def _row(section: _Section) -> tuple[TableRow, _Section]:
    section.only("off", "neurons", "like", "scale", "printed")
    off = section.choices("off", PARTS)
    if not off:
        section.fail("off", f"at least one part is needed, of {', '.join(PARTS)}")
    neurons = cast(SetKind, section.one_of("neurons", _KINDS))
    like: SetKind | None = section.optional("like", lambda key: cast(SetKind, section.one_of(key, _NOT_RANDOM)))
    if like is not None and neurons != "random":
        section.fail("like", 'it says what a random set is as large as, so it goes with neurons = "random" alone')
    scale = section.optional("scale", section.number) or 0.0
    printed = {model: _printed(section, model) for model in section.table("printed")}
    setting = StageSetting(**{part: part in off for part in PARTS})
    return TableRow(setting, neurons, like or "lang-spec", scale, printed), section


def _printed(section: _Section, model: str) -> Printed:
    numbers = section.table("printed")[model]
    if not isinstance(numbers, list) or len(numbers) != 5 or not all(map(_is_number, numbers)):
        section.fail("printed", f"of {model}: five numbers are needed: Eng, n-Eng, their changes, Delta")
    return Printed(*map(float, numbers))


def _check_rows(rows: Sequence[TableRow], sections: Sequence[_Section]) -> None:
    """Raises InputError for a row that is there twice: its numbers would be called the same."""
    for i, row in enumerate(rows):
        for earlier, section in zip(rows[:i], sections, strict=False):
            if replace(row, printed={}) == replace(earlier, printed={}):
                sections[i].fail(None, f"the same row as in line {section.line(None)}; leave one out")


class _Lines:
    """Where the keys of a TOML text stand, as well as a look at each line tells: tomllib does not say."""

    _HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\- \"']+?)\s*\]\]?\s*(#.*)?$")
    _KEY = re.compile(r"\s*([\w\-]+|\"[^\"]*\"|'[^']*')\s*[.=]")

    def __init__(self, text: str):
        self._lines: dict[tuple[str | int, ...], int] = {(): 1}
        counts: Counter[str] = Counter()
        place: tuple[str | int, ...] = ()
        for number, line in enumerate(text.split("\n"), 1):
            if header := self._HEADER.match(line):
                name, *inner = (part.strip(" \"'") for part in header[2].split("."))
                counts[name] += header[1] == "[[" and not inner
                place = ((name, counts[name] - 1) if counts[name] else (name,)) + tuple(inner)
                for length in range(1, len(place) + 1):
                    self._lines.setdefault(place[:length], number)
            elif key := self._KEY.match(line):
                self._lines.setdefault((*place, key[1].strip("\"'")), number)

    def of(self, place: tuple[str | int, ...]) -> int:
        """The line of a key, or of what it is in."""
        while place not in self._lines:
            place = place[:-1]
        return self._lines[place]


class _Section:
    """A table of the file whose values are taken one by one; each check names the line."""

    def __init__(self, values: Mapping[str, object], where: str, lines: _Lines, place: tuple[str | int, ...]):
        self.values, self.where, self._lines, self._place = values, where, lines, place

    def line(self, key: str | None) -> int:
        return self._lines.of(self._place if key is None else (*self._place, key))

    def fail(self, key: str | None, message: str) -> NoReturn:
        shown = "" if key is None else f"{key} = {_shown(self.values[key])}: " if key in self.values else f"{key}: "
        raise InputError(f"{self.where}:{self.line(key)}: {shown}{message}")

    def only(self, *known: str) -> None:
        """Raises InputError for a key that is none of these."""
        for key in self.values:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                meant = f"did you mean {close[0]}?" if close else f"it can be {', '.join(known)}"
                raise InputError(f"{self.where}:{self.line(key)}: {key!r:.60} is not known; {meant}")

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        return read(key) if key in self.values else None

    def _needed(self, key: str, form: str) -> object:
        if key not in self.values:
            self.fail(key, f"missing; {form} is needed")
        return self.values[key]

    def text(self, key: str) -> str:
        value = self._needed(key, "a text")
        if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
            self.fail(key, "a text of one line and at most 100 characters is needed")
        return value

    def one_of(self, key: str, allowed: Sequence[str]) -> str:
        value = self._needed(key, f"one of {', '.join(allowed)}")
        if not isinstance(value, str) or value not in allowed:
            self.fail(key, f"{_meant(value, allowed)}one of {', '.join(allowed)} is needed")
        return value

    def choices(self, key: str, allowed: Sequence[str]) -> list[str]:
        """A list of words, each of which is allowed."""
        values = self._needed(key, f"a list of {', '.join(allowed)}")
        if not isinstance(values, list) or not all(isinstance(v, str) and v in allowed for v in values):
            wrong = next((v for v in values if v not in allowed), None) if isinstance(values, list) else None
            self.fail(key, f"{_meant(wrong, allowed)}a list of some of {', '.join(allowed)} is needed")
        return values

    def words(self, key: str, form: re.Pattern[str]) -> tuple[str, ...]:
        values = self.values[key]
        if not isinstance(values, list) or not values:
            self.fail(key, 'a list of codes is needed, as in ["en", "de"]')
        if not all(isinstance(v, str) and form.fullmatch(v) for v in values):
            self.fail(key, 'codes of languages are needed, as in ["en", "de"]')
        return tuple(dict.fromkeys(values))

    def count(self, key: str, least: int) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            self.fail(key, f"a whole number is needed, {least} or more")
        return value

    def counts(self, key: str) -> tuple[int, ...]:
        """A whole number, or a list of them."""
        value = self.values[key]
        each = value if isinstance(value, list) else [value]
        layers = [n for n in each if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**31]
        if not each or len(layers) < len(each):
            self.fail(key, "a number of layers is needed, or a list of them, as in [2, 4, 8]")
        return tuple(dict.fromkeys(layers))

    def number(self, key: str) -> float:
        value = self.values[key]
        if not _is_number(value):
            self.fail(key, "a finite number is needed: 0 switches off, 0.5 halves, 2 doubles")
        return float(value)  # type: ignore[arg-type]

    def table(self, key: str) -> Mapping[str, object]:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.fail(key, "a table {MODEL = [five numbers]} is needed")
        return value

    def sections(self, key: str) -> list[_Section]:
        """The tables of a list, at least one."""
        rows = self._needed(key, f"at least one [[{key}]]")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            self.fail(key, f"at least one [[{key}]] is needed, with off and neurons")
        return [_Section(row, self.where, self._lines, (key, i)) for i, row in enumerate(rows)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)


def _shown(value: object) -> str:
    """A value as TOML has it, cut where it is long."""
    if isinstance(value, dict | list):
        return "{…}" if isinstance(value, dict) else "[…]"
    text = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return " ".join(text.split())[:60]


def _meant(value: object, allowed: Sequence[object]) -> str:
    close = difflib.get_close_matches(str(value), [str(one) for one in allowed], 1) if isinstance(value, str) else []
    return f"did you mean {close[0]}? " if close else ""


def package_tables() -> dict[int | str, TableSpec]:
    """{name: table} of the files that come with the package, the paper's first, by number."""
    folder = resources.files("mwork_jax") / "evaluate" / "tables"
    texts = {entry.name: entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(SUFFIX)}
    tables = [parse_table(text, name) for name, text in texts.items()]
    return {t.name: t for t in sorted(tables, key=lambda table: (isinstance(table.name, str), str(table.name)))}


PACKAGED = package_tables()
# Those of sections 3.3 to 3.6, which all take one kind of sets.
TABLES: dict[int, TableSpec] = {n: table for n, table in PACKAGED.items() if isinstance(n, int) and not table.mode}


def tables_named(which: str) -> tuple[TableSpec, ...]:
    """The tables that "2", "3", "4", "5" or "all" names, another of the package, or a file NAME.toml; InputError for
    anything else."""
    if which == "all":
        return tuple(TABLES.values())
    if which.endswith(SUFFIX):
        return (read_table(which),)
    names = {str(name): table for name, table in PACKAGED.items()}
    if which not in names:
        others = ", ".join(str(name) for name in PACKAGED if name not in TABLES)
        raise InputError(
            f"table {which!r} is not one of the paper's; choose {', '.join(map(str, TABLES))} or all, {others}, or a "
            f"file of your own, NAME{SUFFIX}"
        )
    return (names[which],)


@dataclass(frozen=True)
class Slip:
    """A printed change that does not fit its score: under the original that the model's other rows imply, `change`
    would be printed. row: from 0."""

    model: str
    row: int
    score: str
    change: float


def slips(table: TableSpec) -> tuple[Slip, ...]:
    """The slips of a printed table: for each model the original score is what most of its rows imply, score - change;
    a row that implies another one, by more than rounding, has a slip."""
    found = []
    for model in dict.fromkeys(model for row in table.rows for model in row.printed):
        rows = [(i, row.printed[model]) for i, row in enumerate(table.rows) if model in row.printed]
        for score in ("eng", "n_eng"):
            implied = [round(getattr(line, score) - getattr(line, f"delta_{score}"), 1) for _, line in rows]
            original = Counter(implied).most_common(1)[0][0]
            found += [
                Slip(model, i, score, round(getattr(line, score) - original, 1))
                for (i, line), of_row in zip(rows, implied, strict=True)
                if abs(of_row - original) > _ROUNDING
            ]
    return tuple(found)
