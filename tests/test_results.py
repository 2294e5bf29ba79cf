"""Results in files: every kind comes back as it was, and what does not fit is refused in one line that names the file
and the field."""

import copy
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from dataclasses import replace

import pytest

import mwork_jax
from mwork_jax.errors import InputError
from mwork_jax.results import (
    FORMAT,
    DeltaRow,
    LensResults,
    RunResults,
    TableResult,
    TablesResults,
    read_results,
    versions,
    write_results,
)
from mwork_jax.version import __version__
from support.made_results import REAL, every_kind, made_grid, made_lens, made_row, made_run, made_table

KINDS = every_kind()
TEXTS = {kind: json.dumps(result.to_json()) for kind, result in KINDS.items()}


def body_of(kind):
    """A result of a kind as a file holds it, to be changed by a test."""
    return json.loads(TEXTS[kind])


def refusal(body, cls=None):
    """The line that a damaged value is refused with."""
    cls = cls or type(KINDS[body["kind"]])
    with pytest.raises(InputError) as caught:
        cls.from_json(body, "folder/results.json")
    return one_line_of(caught.value)


def one_line_of(error):
    line = str(error)
    assert line.startswith("folder/results.json: ")
    assert "\n" not in line
    return line


def places(value, path=()):
    """Every place inside a JSON value, one of each kind of place: of a list the first entry, of an object with free
    names (languages, scores) the first too."""
    if isinstance(value, dict):
        free = path and path[-1] in FREE
        for name in list(value)[:1] if free else value:
            yield (*path, name)
            yield from places(value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield (*path, 0)
        yield from places(value[0], (*path, 0))


FREE = {
    "data", "versions", "neurons", "original", "languages", "by_language", "mcnemar", "runs", "sizes", "counts",
    "scores", "held-out loss", "xquad", "en", "examples", "matrix", "items",
    "importance", "tasks", "higher_is_better",
}  # fmt: skip


def at(body, path):
    for step in path:
        body = body[step]
    return body


def field_of(path):
    """The last name on a path that is a field, not an entry or a place in a list."""
    fields = [
        step for above, step in zip((None, *path), path, strict=False) if isinstance(step, str) and above not in FREE
    ]
    return fields[-1]


ALL_PLACES = [(kind, path) for kind in KINDS for path in places(body_of(kind)) if path != ("format",)]
WRONG = {"text": "high", "a truth": True, "an object": {"x": 1}, "a list": [[1]], "nothing": None}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_as_it_was(kind, tmp_path):
    result = KINDS[kind]
    text = json.dumps(result.to_json())
    again = type(result).from_json(json.loads(text), "here")
    assert again == result
    assert json.dumps(again.to_json()) == text
    write_results(tmp_path / "results.json", result)
    read = read_results(tmp_path / "results.json")
    assert type(read) is type(result)
    assert read == result
    body = json.loads((tmp_path / "results.json").read_text())
    assert (body["format"], body["kind"]) == (FORMAT, kind)


def test_a_table_and_a_grid_come_back_alone():
    for table in (made_table(), made_grid()):
        assert TableResult.from_json(json.loads(json.dumps(table.to_json())), "here") == table


@pytest.mark.parametrize("name", ["results.json", "lens.json", "tables/results.json", "grid/results.json"])
def test_real_files_come_back_as_they_were(name, tmp_path):
    result = read_results(REAL / name)
    assert result.to_json() == type(result).from_json(json.loads(json.dumps(result.to_json())), "here").to_json()
    write_results(tmp_path / "again.json", result)
    written = json.loads((tmp_path / "again.json").read_text())
    assert written.pop("checksum")
    assert written == json.loads((REAL / name).read_text())


def test_a_digit_that_changed_in_a_file_is_damage(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, KINDS["run"])
    body = json.loads(path.read_text())
    body["provenance"]["seed"] += 1
    path.write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"results.json: damaged \(checksum should be that of its values\)"):
        read_results(path)
    del body["checksum"]  # as in files from before there was one
    path.write_text(json.dumps(body))
    assert read_results(path).provenance.seed == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_the_wrong_type_is_named(kind):
    """Every field of every kind, with values of the other types; None is right where a field may be without value."""
    refused = 0
    for _, path in (place for place in ALL_PLACES if place[0] == kind):
        right = at(body_of(kind), path)
        for wrong in WRONG.values():
            body = body_of(kind)
            at(body, path[:-1])[path[-1]] = wrong
            try:
                type(KINDS[kind]).from_json(body, "folder/results.json")
            except InputError as error:
                line = one_line_of(error)
                refused += 1
                assert field_of(path) in line or _says_what_is_wrong(line), (path, wrong, line)
            else:
                assert wrong is None or type(wrong) is type(right) or right is None, (path, wrong)
    assert refused > 50


def _says_what_is_wrong(line):
    """Whether a line names the part of a result where the place is: msgspec calls the entries of a mapping `[...]`, and
    a rule that several fields have to meet has words of its own."""
    return re.search(r"at `(key in )?\$[^`]*\[\.\.\.\][^`]*`|should|has stages|are not|is not", line) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_is_missing_is_named(kind):
    optional = {f.name for cls in _classes() for f in dataclasses.fields(cls) if _has_default(f)}
    for _, path in (place for place in ALL_PLACES if place[0] == kind):
        name = path[-1]
        if isinstance(name, str) and (len(path) < 2 or path[-2] not in FREE) and name not in optional:
            body = body_of(kind)
            del at(body, path[:-1])[name]
            line = refusal(body, type(KINDS[kind]))
            assert f"missing required field `{name}`" in line, line


def _has_default(field):
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _classes():
    from mwork_jax import results, settings
    from mwork_jax.intervene import stages
    from mwork_jax.model import identity

    modules = (results, settings, mwork_jax.metrics, identity, stages)
    return [one for module in modules for one in vars(module).values() if dataclasses.is_dataclass(one)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_nobody_knows_is_named(kind):
    """At every place where an object has fields: a newer version may have meant something by it."""
    for path in ((), *(path for k, path in ALL_PLACES if k == kind)):
        body = body_of(kind)
        value = at(body, path)
        if isinstance(value, dict) and not (path and path[-1] in FREE):
            value["new\nfield"] = 1
            line = refusal(body)
            assert r"'new\nfield' is not known; was it written by a newer version?" in line


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 1e300, -1e300, 10**300, 10**4000])
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("run", ("rows", 0, "delta")),
        ("run", ("rows", 0, "delta_ci95", 1)),
        ("run", ("rows", 0, "seed_spread", "delta", "std")),
        ("run", ("original", "de", "nats_per_token")),
        ("run", ("languages", "de", "random", "own", 1)),
        ("run", ("languages", "de", "neurons")),
        ("run", ("matrix", "th", "de", "rise")),
        ("run", ("matrix", "th", "de", "ci95", 0)),
        ("tables", ("tables", 1, "rows", 3, "beyond_random", "ci95", 0)),
        ("tables", ("tables", 0, "original", "de", "accuracy_sum")),
        ("enhance", ("rows", 0, "own_by_seed", 2)),
        ("enhance", ("runs", "de lang-spec 400", "train", 1)),
        ("enhance", ("provenance", "settings", "tune", "learning_rate")),
        ("lens", ("shares", 0, "top_k", 1, 2)),
        ("lens", ("examples", 0, "layers", 1, 0, "probability")),
        ("detect", ("scores", "de", "tokens")),
    ],
)
def test_numbers_that_no_figure_could_hold(kind, path, number):
    body = body_of(kind)
    at(body, path[:-1])[path[-1]] = number
    line = refusal(body)
    assert len(line) < 250


def test_a_number_that_is_not_finite_is_refused_in_a_file_too(tmp_path):
    path = tmp_path / "results.json"
    for number in ("NaN", "-Infinity", "1e999", "1" * 400):
        path.write_text(json.dumps(KINDS["run"].to_json()).replace('"delta": 2.0', f'"delta": {number}'))
        with pytest.raises(InputError, match=re.escape(str(path))) as caught:
            read_results(path)
        assert "\n" not in str(caught.value)


def test_whole_numbers_may_stand_for_others():
    body = body_of("run")
    body["rows"][0]["delta"] = 2
    delta = RunResults.from_json(body, "here").rows[0].delta
    assert (delta, type(delta)) == (2.0, float)


@pytest.mark.parametrize("interval", [[], [1.0], [1.0, 2.0, 3.0], [1.0, None], ["1", "2"], 1.0, {"low": 1, "high": 2}])
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("run", ("rows", 0, "delta_ci95")),
        ("run", ("rows", 1, "beyond_random", "ci95")),
        ("run", ("matrix", "th", "de", "ci95")),
        ("enhance", ("rows", 0, "delta_n_eng_ci95")),
        ("enhance", ("rows", 0, "own_beyond_random", "ci95")),
    ],
)
def test_an_interval_has_two_ends(kind, path, interval):
    body = body_of(kind)
    at(body, path[:-1])[path[-1]] = interval
    assert path[-1] in refusal(body)


@pytest.mark.parametrize("table", ["top_k", "top_1"])
def test_tables_of_a_lens_are_whole(table):
    def shares(change):
        body = body_of("lens")
        change(body["shares"][1][table])
        return refusal(body)

    wrong = "the shares of 'th' are not 4 rows of 6 columns"
    assert wrong in shares(lambda rows: rows.pop())
    assert wrong in shares(lambda rows: rows.append(rows[0]))
    assert wrong in shares(lambda rows: rows[2].pop())
    assert wrong in shares(lambda rows: rows[2].append(0.0))
    assert wrong in shares(lambda rows: rows.clear())
    assert "the shares of 'th' are not all from 0 to 1" in shares(lambda rows: rows[2].__setitem__(0, 1.5))
    assert "the shares of 'th' are not all from 0 to 1" in shares(lambda rows: rows[2].__setitem__(0, -0.5))


def test_examples_of_a_lens_are_whole():
    def example(change):
        body = body_of("lens")
        change(body["examples"][1])
        return refusal(body)

    wrong = "the example of 'th' is not 4 rows of 2 positions"
    assert wrong in example(lambda e: e["layers"].pop())
    assert wrong in example(lambda e: e["layers"][1].pop())
    assert "the example of 'th' is not 4 rows of 1 positions" in example(lambda e: e["tokens"].pop())
    assert "the probabilities of 'th'" in example(lambda e: e["layers"][1][0].update(probability=-0.1))


def test_a_lens_needs_the_original_model():
    body = body_of("lens")
    for shares in body["shares"]:
        shares["neurons_off"] = 5
    assert "shares should have something of the original model in it" in refusal(body)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("run", ("rows",)), ("run", ("languages",)), ("run", ("original",)), ("run", ("provenance", "data")),
        ("tables", ("tables",)), ("tables", ("tables", 0, "rows")), ("tables", ("tables", 0, "original")),
        ("enhance", ("rows",)), ("enhance", ("runs",)), ("lens", ("shares",)),
    ],
)  # fmt: skip
def test_what_a_report_counts_on_is_not_empty(kind, path):
    body = body_of(kind)
    at(body, path).clear()
    assert f"{path[-1]} should have something" in refusal(body)


def test_a_run_from_before_there_was_a_matrix_is_read():
    body = body_of("run")
    del body["matrix"], body["provenance"]["settings"]["matrix_documents"]
    run = RunResults.from_json(body, "here")
    assert (run.matrix, run.rows) == ({}, made_run().rows)


def test_a_matrix_is_whole():
    def matrix(change):
        body = body_of("run")
        change(body["matrix"])
        return refusal(body)

    assert "matrix should have every language of original in each row" in matrix(lambda m: m["de"].pop("th"))
    assert "matrix should have every language of original in each row" in matrix(
        lambda m: m["de"].update(xx=m["de"]["th"])
    )
    assert "matrix should have rows of the languages of original alone" in matrix(lambda m: m.update(xx=m["de"]))
    assert "matrix should have every language" in matrix(lambda m: m["th"].clear())
    assert "documents is -1" in matrix(lambda m: m["de"]["th"].update(documents=-1))
    body = body_of("run")
    del body["matrix"]["en"]
    assert list(RunResults.from_json(body, "here").matrix) == ["de", "th"], "English may have no row"


def test_a_table_is_no_grid():
    table = body_of("tables")["tables"]
    assert [one["kind"] for one in table] == ["table", "grid"]

    def changed(i, change):
        body = body_of("tables")
        change(body["tables"][i])
        body["rows"] = [row for one in body["tables"] for row in one["rows"]]
        return refusal(body)

    assert "a grid has N1 and N2" in changed(1, lambda t: t["rows"][0].update(understanding=None))
    assert "a grid has N1 and N2" in changed(1, lambda t: t.update(stages=table[0]["stages"]))
    assert "a table has stages of its own" in changed(0, lambda t: t.update(stages=None))
    assert "a table has stages of its own" in changed(0, lambda t: t["rows"][0].update(understanding=1, generation=1))
    assert "task's score" in changed(0, lambda t: t["original"]["de"].pop("accuracy_sum"))


def test_rows_of_a_folder_are_those_of_its_tables():
    body = body_of("tables")
    body["rows"][0]["delta"] += 1
    assert "rows should be those of the tables" in refusal(body)
    tables = TablesResults.of([made_table("xquad"), made_table()])
    assert [row.task for row in tables.rows] == ["xquad", "xquad", "xcsqa", "xcsqa"]
    assert tables.provenance == tables.tables[-1].provenance


def test_impossible_values_name_their_field():
    body = body_of("run")
    body["stages"]["understanding"] = 99
    assert re.search(r"N1 = 99 .*at `\$\.stages`", refusal(body))
    body = body_of("enhance")
    body["provenance"]["settings"]["tune"]["epochs"] = 0
    assert re.search(r"epochs is 0.*at `\$\.provenance\.settings\.tune`", refusal(body))
    body = body_of("detect")
    body["provenance"]["model"]["layers"] = 0
    assert re.search(r"layers .*1 or more.*at `\$\.provenance\.model`", refusal(body))
    body = body_of("run")
    body["rows"][0]["neurons"] = "all\nof\nthem"
    assert re.search(r"Invalid enum value .*at `\$\.rows\[0\]\.neurons`", refusal(body))


@pytest.mark.parametrize("form", ["mwork-results-1", "mwork-lens-1"])
def test_files_of_version_0_1_are_refused(form, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format": form, "rows": [{"delta_ci95": [0, 1]}]}))
    with pytest.raises(InputError) as caught:
        read_results(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: written by version 0.1")
    assert "run the command again, with another output folder" in line
    assert "\n" not in line
    assert "written by version 0.1" in refusal({"format": form, "kind": "run"})


@pytest.mark.parametrize(
    "text", ["[]", "7", "null", '"text"', '{"accuracy": 1}', '{"format": 2}', '{"format": ["mwork-results-2"]}'],
)  # fmt: skip
def test_files_of_others_are_refused(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"results\.json: not a result of this project \(its 'format' should be"):
        read_results(path)


@pytest.mark.parametrize("kind", [None, 7, [], "table", "atlas\n"])
def test_a_kind_that_does_not_exist(kind, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**body_of("run"), "kind": kind}))
    with pytest.raises(InputError, match="'kind' should be one of run, tables, enhance, lens, detect") as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


def test_one_kind_is_not_another():
    assert re.search(r"Invalid enum value 'lens' - at `\$\.kind`", refusal(body_of("lens"), RunResults))
    assert "damaged" in refusal(body_of("run"), LensResults)


def test_nested_too_deeply(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"format": "mwork-results-2", "kind": "run", "rows": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(InputError) as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


def test_nothing_can_be_changed():
    run = made_run()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.kind = "lens"
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.rows[0].delta = 0.0
    assert copy.deepcopy(run) == run


def test_a_result_that_cannot_be_is_not_made():
    with pytest.raises(ValueError, match="rows should have something"):
        replace(made_run(), rows=())
    lens = made_lens()
    with pytest.raises(ValueError, match="not 4 rows of 6 columns"):
        replace(lens, shares=(replace(lens.shares[0], top_k=lens.shares[0].top_k[1:]),))


def test_what_a_row_switches_off():
    assert made_row(off=("under", "gen")).off == (True, False, False, True)
    assert DeltaRow.__dataclass_fields__["p"].type == "float | None"


def test_versions_name_what_decides():
    assert versions()["mwork-jax"] == __version__
    assert {"python", "jax", "flax", "numpy"} <= set(versions())


def signatures():
    """(where, annotation) of every public function, method and dataclass field of the package."""
    for info in pkgutil.walk_packages(mwork_jax.__path__, "mwork_jax."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name:
                continue
            where = f"{info.name}.{name}"
            if inspect.isclass(value):
                if dataclasses.is_dataclass(value):
                    fields = [f for f in dataclasses.fields(value) if not f.name.startswith("_")]
                    yield from ((f"{where}.{f.name}", str(f.type)) for f in fields)
                for method, function in vars(value).items():
                    function = getattr(function, "__func__", getattr(function, "fget", function))
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield from ((f"{where}.{method}", str(x)) for x in function.__annotations__.values())
            elif inspect.isfunction(inspect.unwrap(value)) if callable(value) else False:
                yield from ((where, str(x)) for x in inspect.unwrap(value).__annotations__.values())


UNTYPED = re.compile(r"\b(dict|Mapping|MutableMapping)\[\s*str\s*,\s*(typing\.)?Any\s*\]")


def test_no_public_signature_has_tables_of_anything():
    everything = list(signatures())
    assert len(everything) > 500
    untyped = sorted({where for where, annotation in everything if UNTYPED.search(annotation)})
    assert untyped == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta_ci95": (9.0, -9.0)}, r"delta_ci95 is \(9.0, -9.0\); it should be the lower end first"),
        ({"p": 7.5}, "p is 7.5; it should be from 0 to 1"),
        ({"n_items": -24}, "n_items is -24; it should be 0 or more"),
    ],
)
def test_numbers_that_nothing_can_have_are_refused(change, message):
    table = made_table()
    table = replace(table, rows=(replace(table.rows[0], **change), *table.rows[1:]))
    with pytest.raises(InputError, match=message):
        TablesResults.from_json(json.loads(json.dumps(TablesResults.of([table]).to_json())), "x")
