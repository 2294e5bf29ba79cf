"""Every format that the package reads: valid files of each, and what reads them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from gguf import GGMLQuantizationType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import mwork_jax as mw
from mwork_jax.corpus import read_corpus
from mwork_jax.detect.scores import NeuronScores
from mwork_jax.enhance.export import apply_delta, save_delta, save_folder
from mwork_jax.evaluate.table_files import read_table, slips
from mwork_jax.evaluate.tasks import TASKS, prompt, questions
from mwork_jax.lens.vocabulary import VocabularyLabels
from mwork_jax.load import read_config
from mwork_jax.load.tokenizer import folder_tokenizer
from mwork_jax.model.tokens import added_tokens, chat_prompt, encode
from mwork_jax.neurons import NeuronSet
from mwork_jax.paper import PLAN_FILE, PaperPlan, plan_lines
from mwork_jax.report import read_report
from mwork_jax.results import read_results, write_results
from mwork_jax.runtime.cache import ResultCache
from mwork_jax.runtime.files import read_json, write_json
from mwork_jax.samples import samples_path, write_samples
from mwork_jax.select.modes import select_neurons
from mwork_jax.settings import PaperSettings, TableSettings
from support import gguf_writing
from support.made_results import every_kind, made_sample, made_scores
from support.mutations import FORMULA, MARKUP
from support.tiny import FAMILIES, hf_model, pair
from support.tuned import tuned_model

Files = Mapping[str, bytes]  # path within a folder -> content
_TEXT = "Ünder the 道, 12,345 times. <s> \n"
_CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Format:
    """samples: makes valid folders. read: uses all that is in one; raises InputError where it is bad. changed: which of
    a folder's files may be bad, by how their names end; the others stay as they are."""

    samples: Callable[[], list[Files]]
    read: Callable[[Path], object]
    changed: tuple[str, ...] = ("",)

    def bad(self, files: Files) -> Files:
        return {name: content for name, content in files.items() if name.endswith(self.changed)}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _made(*makers: Callable[[Path], object]) -> list[Files]:
    """What each function writes into an empty folder."""
    made = []
    for maker in makers:
        with tempfile.TemporaryDirectory() as folder:
            maker(Path(folder))
            made.append(contents(Path(folder)))
    return made


@cache
def _hf(family: str, **changes: Any) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 260} | changes
    own = FAMILIES[family][1]
    two_layers = {"layer_types": ["sliding_attention", "full_attention"], "no_rope_layers": [1, 0]}
    sizes |= {name: value for name, value in two_layers.items() if name in own}
    sizes |= {"hidden_size": own["hidden_size"]} if "hidden_size" in own else {}
    return hf_model(family, 2, **sizes)


def _save_model(folder: Path, family: str = "llama", shard: str | None = None, **changes: Any) -> None:
    _hf(family, **changes).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))


def _save_tokenizer(folder: Path, longest: int = 64) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet, "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 64,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "chat_template.jinja").write_text(_CHAT)


def save_model_with_text(folder: Path, longest: int = 64) -> None:
    _save_model(folder, max_position_embeddings=longest)
    _save_tokenizer(folder, longest)


def _read_config(folder: Path) -> None:
    read_config(folder)


def _read_model(path: Path) -> None:
    mw.load_model(path, dtype="float32")


def _use_tokenizer(tokenizer: Any) -> None:
    if tokenizer is None:
        return
    ids = encode(tokenizer, _TEXT)
    added_tokens(tokenizer)
    tokenizer.decode(ids)
    if getattr(tokenizer, "chat_template", None):
        encode(tokenizer, chat_prompt(tokenizer, _TEXT))


def _read_tokenizer(folder: Path) -> None:
    _use_tokenizer(folder_tokenizer(folder))


def _save_gguf(folder: Path, family: str, arch: str, vocabulary: Callable[..., dict], quantised: bool = False) -> None:
    texts = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vocabulary().items()}
    count = len(texts["tokenizer.ggml.tokens"])
    hf = _hf(family, vocab_size=count, **({"hidden_size": 32} if quantised else {}))
    metadata, tensors = gguf_writing.model_parts(hf, arch)
    kinds = {"token_embd.weight": GGMLQuantizationType.Q8_0, "blk.0.attn_q.weight": GGMLQuantizationType.Q4_0}
    template = {"tokenizer.chat_template": _CHAT}
    gguf_writing.write_gguf(
        folder / "model.gguf", arch, metadata | texts | template, tensors, kinds if quantised else None
    )


def _read_gguf(folder: Path) -> None:
    _use_tokenizer(mw.load_model(folder / "model.gguf", dtype="float32").tokenizer)


def _flax_tree() -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, tensor in _hf("llama").state_dict().items():
        *parents, leaf = name.split(".")
        array, inner = tensor.detach().numpy(), tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        kernel = array.ndim == 2 and "embed" not in name
        inner["kernel" if kernel else "embedding" if array.ndim == 2 else leaf] = array.T if kernel else array
    return tree


def _save_flax(folder: Path, shards: bool = False) -> None:
    from flax.serialization import msgpack_serialize

    (folder / "config.json").write_text(_hf("llama").config.to_json_string())
    tree = _flax_tree()
    if not shards:
        (folder / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
        return
    parts = {"flax_model-1.msgpack": {"model": tree["model"]}, "flax_model-2.msgpack": {"lm_head": tree["lm_head"]}}
    for name, part in parts.items():
        (folder / name).write_bytes(msgpack_serialize(part))
    table = {"model/x": "flax_model-1.msgpack", "lm_head/x": "flax_model-2.msgpack"}
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def _save_sets(folder: Path) -> None:
    for language, neurons in select_neurons(made_scores(), "top_fraction:0.3").items():
        neurons.save(folder / f"{language}.json")


def _read_sets(folder: Path) -> None:
    sets = [NeuronSet.load(path) for path in sorted(folder.glob("*.json"))]
    union = sets[0]
    for neurons in sets[1:]:
        union = union | neurons
    union.random_like(0)
    union.save(folder / "union.json")
    NeuronSet.load(folder / "union.json")


def _save_scores(folder: Path) -> None:
    for language, scores in made_scores().items():
        scores.save(folder / f"{language}.safetensors")


def _read_scores(folder: Path) -> None:
    scores = {path.stem: NeuronScores.load(path) for path in sorted(folder.glob("*.safetensors"))}
    for rule in ("top_fraction:0.3", "top_k:3", "lape:0.1"):
        select_neurons(scores, rule)


def _read_delta(folder: Path) -> None:
    apply_delta(pair("llama", 2).model, folder / "delta.safetensors")


def _save_results(folder: Path) -> None:
    for kind, results in every_kind().items():
        write_results(folder / f"{kind}.json", results)


def _read_results(folder: Path) -> None:
    for path in folder.glob("*.json"):
        read_results(path)


def _save_reports(folder: Path, kind: str) -> None:
    write_results(folder / ("lens.json" if kind == "lens" else "results.json"), every_kind()[kind])
    if kind == "tables":
        write_samples(samples_path(folder, "table-2-xquad"), map(made_sample, range(3)))


def _read_report(folder: Path) -> None:
    """The page, its figures and tables: nothing that results say is markup, a formula or a path there."""
    report = read_report(folder)
    before = contents(folder.parent)
    report.write()
    new = {name for name, content in contents(folder.parent).items() if before.get(name) != content}
    outside = {name for name in new if not name.startswith(f"{folder.name}/")}
    assert not outside, f"written outside: {outside}"
    for name in new:
        text = (folder.parent / name).read_text()
        assert MARKUP not in text, f"markup in {name}"
        assert "<script>alert" not in text, f"markup in {name}"
    for table in report.tables.values():
        assert not re.search(rf"(^|,|\n)\"?{re.escape(FORMULA)}", table.csv()), "a formula"
        table.written("latex")
        table.written("md")


_CELLS = {i: {"value": [i / 3, f"text {i}", None]} for i in range(3)}


def _save_cells(folder: Path, journal: bool = False) -> None:
    cache_of = ResultCache(folder)
    cache_of.put_all([({"cell": i}, value) for i, value in _CELLS.items()])
    if journal:
        entries = [read_json(path) for path in sorted(folder.glob("*.json"))]
        write_json(folder / "0.journal", {"format": entries[0]["format"], "entries": entries})
        for path in folder.glob("*.json"):
            path.unlink()


def _read_cells(folder: Path) -> None:
    """Whatever the files say, a value is what was put there, or computed again."""
    cache_of = ResultCache(folder)
    for i, value in _CELLS.items():
        known = cache_of.get_or_compute({"cell": i}, partial(dict, value))
        assert json.dumps(known) == json.dumps(value), f"cell {i} is {known}"


_LINES = "".join(
    json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(("One 道.", "Two\nlines", "Three"))
)
_CORPORA = {
    "a.jsonl": _LINES,
    "a.ndjson": _LINES,
    "a.json": json.dumps([{"text": "One 道."}, {"text": "Two"}]),
    "a.csv": 'id,text\n1,"One, 道."\n2,"Two ""x"""\n',
    "a.tsv": "id\ttext\n1\tOne\n2\tTwo\n",
    "a.txt": "One 道.\nmore\n\nTwo\n \t\nThree\n",
}


def _read_corpora(folder: Path) -> None:
    for path in folder.iterdir():
        assert all(text.strip() and text.encode() for text in read_corpus(path))


def _task_files() -> list[Files]:
    qas = [{"id": "q1", "question": "Was scheint?", "answers": [{"text": "Sonne", "answer_start": 4}]}]
    squad = {"data": [{"title": "t", "paragraphs": [{"context": "Die Sonne scheint.", "qas": qas}]}], "version": "1.1"}
    choices = [{"label": label, "text": f"选项{label}"} for label in "ABCDE"]
    csqa = {"id": "a1", "lang": "de", "question": {"stem": "Wo?", "choices": choices}, "answerKey": "C"}
    copa = {"premise": "那人。", "choice1": "满。", "choice2": "水。", "question": "effect", "label": 1, "idx": 7}
    news = {"id": "n1", "url": "u", "title": "t", "summary": "Kurz.", "text": "Lang und breit."}
    table = 'category\theadline\ttext\turl\na\tTitle\t"A text."\tu\n'
    files = {
        "xquad/de.json": json.dumps(squad),
        "mgsm/de.tsv": "Wie viele?\t2,125\nUnd jetzt?\t-7.5\n",
        "xcsqa/de.jsonl": json.dumps(csqa) + "\n",
        "xcopa/zh.jsonl": json.dumps(copa, ensure_ascii=False) + "\n",
        "xlsum/fr.jsonl": json.dumps(news) + "\n",
        "headlines/fr.tsv": table,
    }
    return [{name: text.encode()} for name, text in files.items()]


def _read_task(folder: Path) -> None:
    for path in folder.glob("*/*"):
        task = TASKS[path.parent.name]
        for item in questions(task, path.stem, path).items:
            prompt(task, item).encode()
            if task.kind == "generate":
                task.score(item, "42 Sonne")


_TABLE = """
table = "sharing"
stage = "what languages share"
task = "xcsqa"
stand_in = "xcopa"
languages = ["en", "de"]
seeds = 3
n1 = [1, 2]
statistics = ["beyond-random"]
contrasts = [[1, 2]]
[[rows]]
off = ["s_ffn", "gen"]
neurons = "random"
like = "shared"
printed.Vicuna = [1, 2.5, -0.5, 4, 1e1]
[[rows]]
off = ["under"]
neurons = "lang-spec"
scale = 0.5
"""


def _save_table(folder: Path, text: str = _TABLE) -> None:
    (folder / "mine.toml").write_text(text, encoding="utf-8")


def _read_tables(folder: Path) -> None:
    table = read_table(folder / "mine.toml")
    slips(table)
    table.settings(TableSettings(("en", "fr")), ())


def _save_plan(folder: Path) -> None:
    settings = PaperSettings(("en", "de"), ("2", "6"), budget=60.0)
    plan = PaperPlan(settings, {"2": 12}, (100, 200), True, seconds={"2": 30.5})
    write_json(folder / PLAN_FILE, msgspec.to_builtins(plan))


def _read_plan(folder: Path) -> None:
    plan = PaperPlan.load(folder / PLAN_FILE)
    plan.check(plan.settings, folder / PLAN_FILE)
    plan_lines(plan)


_TABLE_FILES = (_save_table, partial(_save_table, text=_TABLE.replace("[[rows]]", "[[ rows ]]  # a row")))


def _save_labels(folder: Path) -> None:
    codes = np.asarray([0, 1, 2, 3, 4], np.int16)
    VocabularyLabels(("en", "de"), codes, {"labeller": "made up"}).save(folder / "labels.json")


def _read_labels(folder: Path) -> None:
    labels = VocabularyLabels.load(folder / "labels.json")
    labels.counts()
    labels.table()


def _save_tuned(folder: Path) -> None:
    save_folder(tuned_model("llama"), folder)


def _read_saved(folder: Path) -> None:
    """A folder that tuning wrote before: it is replaced, or refused; what others put there stays."""
    before = contents(folder.parent)
    save_folder(tuned_model("llama"), folder)
    for name, content in before.items():
        if not name.startswith(f"{folder.name}/"):
            assert contents(folder.parent).get(name) == content, f"changed outside: {name}"
    _read_model(folder)


_GGUF = (
    partial(_save_gguf, family="llama", arch="llama", vocabulary=gguf_writing.sentencepiece_metadata),
    partial(_save_gguf, family="qwen2", arch="qwen2", vocabulary=gguf_writing.byte_level_metadata),
    partial(_save_gguf, family="gemma3", arch="gemma3", vocabulary=gguf_writing.sentencepiece_metadata, quantised=True),
    *(
        partial(_save_gguf, family=family, arch=arch, vocabulary=gguf_writing.byte_level_metadata)
        for family, arch in gguf_writing.ARCHITECTURES.items()
    ),
)
_MODELS = tuple(partial(_save_model, family=family) for family in FAMILIES)
_FLAX = (_save_flax, partial(_save_flax, shards=True))
_SHOWN = ("run", "tables", "enhance", "lens", "steer")
_CELL_FILES = (_save_cells, partial(_save_cells, journal=True))


def _save_delta(folder: Path) -> None:
    save_delta(tuned_model("llama"), folder / "delta.safetensors")


FORMATS: dict[str, Format] = {
    "config": Format(
        partial(_made, *(partial(_save_model, family=f) for f in FAMILIES)), _read_config, ("config.json",)
    ),
    "safetensors": Format(partial(_made, _save_model), _read_model, (".safetensors", "/config.json")),
    "index": Format(partial(_made, partial(_save_model, shard="20KB")), _read_model, (".index.json",)),
    "tokenizer": Format(partial(_made, _save_tokenizer), _read_tokenizer),
    "model": Format(partial(_made, save_model_with_text), _read_model),
    "gguf": Format(partial(_made, *_GGUF), _read_gguf),
    "flax": Format(partial(_made, *_FLAX), _read_model, (".msgpack", "index.json")),
    "sets": Format(partial(_made, _save_sets), _read_sets),
    "scores": Format(partial(_made, _save_scores), _read_scores),
    "delta": Format(partial(_made, _save_delta), _read_delta),
    "results": Format(partial(_made, _save_results), _read_results),
    "report": Format(partial(_made, *(partial(_save_reports, kind=k) for k in _SHOWN)), _read_report),
    "cells": Format(partial(_made, *_CELL_FILES), _read_cells),
    "corpora": Format(lambda: [{name: text.encode()} for name, text in _CORPORA.items()], _read_corpora),
    "tasks": Format(_task_files, _read_task),
    "tables": Format(partial(_made, *_TABLE_FILES), _read_tables),
    "plan": Format(partial(_made, _save_plan), _read_plan),
    "labels": Format(partial(_made, _save_labels), _read_labels),
    "saved": Format(partial(_made, _save_tuned), _read_saved, ("mwork.json", "index.json", "model.safetensors")),
}
