"""The share of the work that is done and the time left, on a terminal and as plain lines, against a clock that the test
sets."""

import contextlib
import fcntl
import io
import os
import re
import struct
import termios
from types import SimpleNamespace

import pytest

from mwork_jax.runtime.progress import Progress, _interval, while_it_lasts


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal:
    """A pseudo-terminal in the place of stderr; `last` is what stands in its line."""

    def __init__(self):
        self.ours, theirs = os.openpty()
        os.set_blocking(self.ours, False)
        self.file = os.fdopen(theirs, "w", encoding="utf-8")
        self.seen = ""

    def read(self):
        try:
            while part := os.read(self.ours, 1 << 16):
                self.seen += part.decode()
        except BlockingIOError:
            pass
        return self.seen

    def last(self):
        return re.split(r"[\r\n]+", self.read().rstrip())[-1].removesuffix("\x1b[K")

    def close(self):
        self.file.close()
        os.close(self.ours)


class Lines:
    """stderr in a file."""

    def __init__(self):
        self.file = io.StringIO()

    def read(self):
        return self.file.getvalue()

    def last(self):
        return self.read().splitlines()[-1]

    def close(self):
        pass


@pytest.fixture(params=[Terminal, Lines], ids=["terminal", "lines"])
def shown(request, monkeypatch):
    screen = request.param()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("mwork_jax.runtime.progress.sys", SimpleNamespace(stderr=screen.file))
    yield screen
    screen.close()


def seconds(text):
    """The time left that a line tells."""
    (found,) = re.findall(r"(\d[\d:]*) left", text)
    value = 0
    for part in found.split(":"):
        value = 60 * value + int(part)
    return value


def percent(text):
    (found,) = re.findall(r"(\d+)%", text)
    return int(found)


def straight(work):
    """900 units of a second each."""
    work(300)
    yield 33, 600
    work(300)
    yield 66, 300
    work(300)


def begun_earlier(work):
    """A third was done by an earlier process."""
    work(300, free=True)
    work(30)  # until then, nothing is known
    yield 36, 570
    work(270)
    yield 66, 300
    work(300)


def several_passes(work):
    """Each pass looks up first, for long, what is there already."""
    work(100, free=True, takes=3000)
    work(100)
    work(100, free=True, takes=3000)
    yield 33, 600
    work(100)
    work(100, free=True, takes=3000)
    work(100)
    yield 66, 300
    work(300)


@pytest.mark.parametrize("scenario", [straight, begun_earlier, several_passes])
@pytest.mark.parametrize("known", ["from the beginning", "later"])
def test_share_and_time_left_at_a_third_and_two_thirds(known, scenario, shown):
    clock, total = Clock(), 900
    bar = Progress(total, clock=clock) if known == "from the beginning" else Progress(clock=clock)

    def work(units, free=False, takes=None):
        """Units in steps of ten, as batches are."""
        for _ in range(units // 10):
            clock.now += (10 if takes is None else takes / (units // 10)) if takes or not free else 0
            bar.add(10, free=free)
            shown.read()

    with bar:
        if known == "later":
            bar.expect(total)
        bar.describe("evaluate de")
        for true_share, true_left in scenario(work):
            clock.now += 11  # a while in which nothing was counted, so that the next call is shown
            bar.describe("evaluate de")
            assert percent(shown.last()) == pytest.approx(true_share, abs=1)
            assert seconds(shown.last()) == pytest.approx(true_left, rel=0.25)
    assert bar.done == total
    assert "evaluate de" in shown.last()


def test_the_share_is_of_all_the_work_that_was_announced(shown):
    """One Progress serves several tables; a total that was given at first stands."""
    clock = Clock()
    for bar, shares in ((Progress(clock=clock), [50, 100, 75, 100]), (Progress(400, clock=clock), [25, 50, 75, 100])):
        found = []
        for _ in range(2):
            with bar:
                bar.expect(200)
                for _ in range(2):
                    bar.add(100)
                    found.append(round(100 * bar.share()))
        assert found == shares


def test_the_total_is_changed_by_expect_alone():
    with pytest.raises(AttributeError):
        Progress(quiet=True).total = 7  # pyright: ignore


def test_nothing_is_told_of_the_time_left_before_anything_was_done(shown):
    clock = Clock()
    with Progress(1000, clock=clock) as bar:
        bar.describe("detect en")
        bar.add(500, free=True)
        clock.now += 20
        bar.describe("detect de")
        assert not re.search(r"\d left", shown.last())
        clock.now += 20
        bar.add(100)
        assert seconds(shown.last()) == pytest.approx(
            160, abs=1
        )  # 40 s each hundred: the half that was there took none


def test_a_line_fits_the_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("mwork_jax.runtime.progress.sys", SimpleNamespace(stderr=screen.file))
    for columns in (80, 120, 70):
        fcntl.ioctl(screen.file.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        clock = Clock()
        with Progress(10, clock=clock) as bar:
            bar.describe("a long name of what is worked on, longer than the room")
            clock.now += 4000
            bar.add(1)
            assert len(screen.last()) < columns
            assert seconds(screen.last()) == 36000
    screen.close()


def test_lines_are_ten_seconds_apart(capsys):
    clock = Clock()
    with Progress(100, clock=clock) as bar:
        bar.describe("detect en")
        for _ in range(100):
            clock.now += 1
            bar.add(1)
    lines = capsys.readouterr().err.splitlines()
    assert 9 <= len(lines) <= 11
    assert lines[0] == "mwork:   0% detect en"
    assert lines[5] == "mwork:  50% detect en, about 00:50 left"


def test_quiet_shows_nothing(shown):
    with Progress(3, quiet=True) as bar:
        bar.describe("detect en")
        bar.add(3)
    assert shown.read() == ""


@pytest.mark.parametrize(("value", "text"), [(0, "00:00"), (59.6, "01:00"), (3599, "59:59"), (36061, "10:01:01")])
def test_intervals(value, text):
    assert _interval(value) == text


def test_the_speed_of_the_slots_is_shown_beside_the_time_left(capsys):
    clock = Clock()
    bar = Progress(10, clock=clock)
    bar.describe("answers")
    tell = bar.speedometer()
    clock.now += 20
    bar.add(2)
    tell(2400, 16, 0.934)
    clock.now += 11
    bar.add(2)
    assert capsys.readouterr().err.splitlines()[-1].endswith("left, 120 tokens/s, 16 rows, slots 93% full")
    bar.describe("losses")
    clock.now += 11
    bar.add(2)
    assert capsys.readouterr().err.splitlines()[-1].endswith("left")


def test_a_line_stands_while_something_lasts_and_nowhere_else(monkeypatch, capsys):
    with while_it_lasts("drawing…"):
        pass
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal.file)
    monkeypatch.setenv("TERM", "xterm")
    try:
        with contextlib.suppress(KeyError), while_it_lasts("drawing…"):
            assert terminal.read().startswith("\rdrawing…")
            raise KeyError
        assert terminal.read().endswith("\r\x1b[K"), "nothing is left of it, after an error too"
    finally:
        terminal.close()
