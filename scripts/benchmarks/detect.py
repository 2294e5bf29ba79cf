"""Detection of all five groups against a plain forward pass, ours and Hugging Face's, and against the published
algorithm in PyTorch, on real models and real text: how large changes are decides what the exact form costs.

Every length has 2,048 tokens, so seconds per document grow with the length: linearly for a forward pass, with its
square for what looks at all pairs of positions. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mwork_jax as mw
from benchmarks.models import finished, smollm2_gguf, torch_checkpoint
from benchmarks.pairing import fastest, paired, seconds
from mwork_jax.corpus import LANGUAGES, own_corpus
from mwork_jax.detect.importance import importance_batch
from mwork_jax.load.packaged import packaged_gguf
from mwork_jax.model.decoder import forward_decoder
from mwork_jax.neurons import NeuronMask
from mwork_jax.report.svg import draw

TOKENS = 2048
LENGTHS = (64, 256, 1024, 2048)
DTYPES = ("float32", "bfloat16")
_PUBLISHED = 512  # over so many tokens, what the published algorithm stores has no room


def rows(rounds: int, plot: str | None = None) -> Iterator[dict[str, Any]]:
    """Per model, length and dtype: seconds of our scores and of our forward pass on one batch, and beside them the
    forward pass of Hugging Face and the published algorithm on one document. plot: a path for a figure of them."""
    paths = {"Gemma 3 270M": packaged_gguf("gemma3-270m"), "SmolLM2-135M": smollm2_gguf()}
    measured = []
    for model, path in paths.items():
        if path is None:
            print("SmolLM2-135M is not here: set MWORK_SMOLLM2 to the folder with its GGUF file", file=sys.stderr)
            continue
        for row in _of_model(path, rounds):
            measured.append({"benchmark": "detect", "model": model} | row)
            yield measured[-1]
    if plot:
        Path(plot).write_text(_figure(measured), encoding="utf-8")


def line(row: Mapping[str, Any]) -> str:
    if "peak" in row:
        detect, forward = (row["peak"][what] for what in ("detect", "forward"))
        return (
            f"{row['model']} 1 x {row['length']} {row['dtype']}: peak memory {detect:.2f} GiB, the forward pass "
            f"{forward:.2f} GiB: {detect / forward:.2f} times"
        )
    published = (
        f"; {row['times_published']:.0f} times as many documents per second as the published algorithm"
        if "times_published" in row
        else ""
    )
    return (
        f"{row['model']} {row['batch']} x {row['length']} {row['dtype']}: {row['ours_seconds']:.2f} s, "
        f"{row['times_forward']:.2f} times the forward pass, {row['ours_tokens_per_second']:.0f} tokens per second"
        f"{published}"
    )


def _of_model(path: Path, rounds: int) -> Iterator[dict[str, Any]]:
    models = {dtype: mw.load_model(path, dtype=dtype) for dtype in DTYPES}
    hf = {dtype: torch_checkpoint(path, dtype) for dtype in DTYPES}
    text = _tokens(models["float32"])
    for length in LENGTHS:
        ids = np.resize(text, (TOKENS // length, length))
        theirs = _theirs(hf, ids)
        for dtype, model in models.items():
            row = {"length": length, "batch": len(ids), "dtype": dtype, "theirs": "our forward pass"}
            row |= paired(_scores(model, ids), _forward(model, ids), rounds if length == 256 else min(rounds, 2))
            row |= theirs | {"times_forward": 1.0 / row["ratio"]}
            row["ours_tokens_per_second"] = TOKENS / row["ours_seconds"]
            if length <= _PUBLISHED:
                row["times_published"] = row["published_seconds_per_document"] * len(ids) / row["ours_seconds"]
            yield row
    for dtype in DTYPES:
        peak = {what: _peak(path, what, dtype) for what in ("forward", "detect")}
        yield {"length": LENGTHS[-1], "dtype": dtype, "peak": peak}


def _theirs(hf: Mapping[str, Any], ids: np.ndarray) -> dict[str, Any]:
    """Hugging Face's forward pass in the dtype that is faster for it, and the published algorithm where it has room."""
    calls = {dtype: partial(_hf_forward, model, ids) for dtype, model in hf.items()}
    best = fastest(calls)
    result: dict[str, Any] = {"hf_seconds": seconds(calls[best]), "hf_dtype": best}
    if ids.shape[1] <= _PUBLISHED:
        result["published_seconds_per_document"] = seconds(partial(_published, hf["float32"], ids[:1]))
    return result


def _tokens(model: Any) -> np.ndarray:
    """Real text in several languages, one document after the other: int32 [tokens]."""
    texts = [text for language in LANGUAGES for text in own_corpus(language).detection]
    return np.concatenate([model.encode(text)[1:] for text in texts])


def _scores(model: Any, ids: np.ndarray) -> Callable[[], Any]:
    token_mask = np.ones(ids.shape, np.float32)
    return lambda: jax.block_until_ready(importance_batch(model.decoder, ids, token_mask))


def _forward(model: Any, ids: np.ndarray) -> Callable[[], Any]:
    mask = NeuronMask.keep_all(model.config)
    return lambda: forward_decoder(model.decoder, ids, mask).block_until_ready()


def _hf_forward(hf: Any, ids: np.ndarray) -> Any:
    import torch

    with torch.inference_mode():
        return finished(hf(torch.tensor(ids, dtype=torch.long, device=hf.device), use_cache=False).logits)


def _published(hf: Any, ids: np.ndarray) -> None:
    """One document by the published formulas: per layer, the attention weights without each query neuron and without
    each key neuron, [heads, size, time, time] in memory; value and feed-forward neurons by the size of their output."""
    import torch

    config = hf.config
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    time = ids.shape[1]
    future = torch.full((time, time), float("-inf"), device=hf.device).triu(1)

    def score(module: Any, _: Any, kwargs: dict[str, Any]) -> None:
        x = kwargs["hidden_states"][0]
        q, k, v = (p(x).view(time, -1, size).transpose(0, 1) for p in (module.q_proj, module.k_proj, module.v_proj))
        k = k.repeat_interleave(heads // groups, dim=0)
        whole = q @ k.transpose(1, 2) / size**0.5 + future
        before = torch.softmax(whole, dim=-1)
        for _ in ("query neurons", "key neurons"):  # each with its own pass, as published
            removed = q.permute(0, 2, 1)[..., None] * k.permute(0, 2, 1)[:, :, None] / size**0.5
            changed = torch.softmax(whole[:, None] - removed, dim=-1) - before[:, None]
            torch.linalg.vector_norm(changed, dim=(2, 3))
        torch.linalg.vector_norm(v, dim=1)

    hooks = [layer.self_attn.register_forward_pre_hook(score, with_kwargs=True) for layer in hf.model.layers]
    hooks += [layer.mlp.up_proj.register_forward_hook(lambda m, i, o: o.abs().sum(dim=1)) for layer in hf.model.layers]
    _hf_forward(hf, ids)
    for hook in hooks:
        hook.remove()


def _peak(path: Path, what: str, dtype: str) -> float:
    """GiB at most of a process that does nothing else, on one document of the longest length."""
    command = [sys.executable, "-m", "benchmarks.detect", str(path), what, dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout.splitlines()[-1])["gib"]


def _alone(path: str, what: str, dtype: str) -> None:
    model = mw.load_model(path, dtype=dtype)
    ids = np.resize(_tokens(model), (1, LENGTHS[-1]))
    (_scores if what == "detect" else _forward)(model, ids)()
    # Not ru_maxrss, which begins with what the process that started this one had.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"gib": int(status["VmHWM"].split()[0]) / 2**20}))


def _figure(measured: Sequence[Mapping[str, Any]]) -> str:
    """Seconds per document against its length, log-log, with the line that grows with the square."""
    timed = [row for row in measured if "peak" not in row and row["dtype"] == "float32"]
    model = timed[-1]["model"]
    timed = [row for row in timed if row["model"] == model]
    lengths = [row["length"] for row in timed]
    lines = {
        "our forward pass": [row["theirs_seconds"] / row["batch"] for row in timed],
        "our scores of all neurons": [row["ours_seconds"] / row["batch"] for row in timed],
        "Hugging Face's forward pass": [row["hf_seconds"] / row["batch"] for row in timed],
    }
    published = [row["published_seconds_per_document"] for row in timed if row["length"] <= _PUBLISHED]

    def plot(axes: Any) -> None:
        for name, values in lines.items():
            axes.plot(lengths, values, marker="o", label=name)
        axes.plot(lengths[: len(published)], published, marker="o", label="published algorithm")
        square = [published[0] * (length / lengths[0]) ** 2 for length in lengths]
        axes.plot(lengths, square, linestyle=":", label="growing with the square")
        axes.set(xscale="log", yscale="log", xlabel="tokens of a document", ylabel="seconds per document")
        axes.legend()

    label = f"{model}: seconds per document"
    return draw("detect", label, f"{label}, for {', '.join(lines)} and the published algorithm", (6.4, 4.0), plot).plain


if __name__ == "__main__":
    _alone(*sys.argv[1:])
