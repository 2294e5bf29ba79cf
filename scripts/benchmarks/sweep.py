"""A sweep of masks against Hugging Face PyTorch doing the same the usual way: zero the weights, run the batch, restore.

Gemma 3 270M scores the answers of XQuAD prompts: the log-likelihood of each after its prompt, under each mask. Both
sides make logits for the answers only. Then: a masked forward pass against one without masks, and greedy generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

import mwork_jax as mw
from benchmarks.models import SMOLLM2, torch_checkpoint, torch_model, zeroed
from benchmarks.pairing import fastest, paired
from mwork_jax.config import ModelConfig
from mwork_jax.evaluate.likelihood import log_likelihoods
from mwork_jax.evaluate.table_run import prepare
from mwork_jax.evaluate.tasks import TASKS
from mwork_jax.evaluate.tasks.base import gap
from mwork_jax.families import config_from_hf
from mwork_jax.intervene.stages import EACH_STAGE, StageSplit
from mwork_jax.load.packaged import packaged_gguf
from mwork_jax.model.decoder import Decoder, forward_decoder, hidden_states, logits_of
from mwork_jax.neurons import LayOut, NeuronMask, NeuronSet, group_widths
from mwork_jax.settings import TableSettings

LANGUAGES = ("en", "de", "th", "zh")
PROMPTS = 64
AT_ONCE = 8  # prompts in a pair: both sides run them as one batch
DTYPES = ("float32", "bfloat16")


def rows(rounds: int, data: str | None = None) -> Iterator[dict[str, Any]]:
    """All comparisons of this file, each side in the dtype that is faster for it."""
    yield _masking(rounds)
    yield from _generations(rounds)
    yield from _sweeps(rounds, data)


def line(row: dict[str, Any]) -> str:
    sides = f"ours {row['ours_seconds']:.3f} s ({row['ours_dtype']}), {row['theirs']} {row['theirs_seconds']:.3f} s"
    ratio = f"{row['ratio']:.2f} times as fast ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
    return f"{row['model']}, {row['what']}: {sides} ({row['theirs_dtype']}), {ratio}"


@dataclass(frozen=True)
class _Item:
    """A prompt and its answer, as text and as tokens."""

    prompt: str
    answer: str
    tokens: np.ndarray
    begin: int  # the answer's first token


def _sweeps(rounds: int, data: str | None) -> Iterator[dict[str, Any]]:
    models = {d: mw.load_model("gemma3-270m", dtype=d) for d in DTYPES}
    path = packaged_gguf("gemma3-270m")
    theirs = {d: torch_checkpoint(path, d) for d in DTYPES}
    items = _items(models["float32"], data)
    sets = sets_of_stages(models["float32"].config, 64)
    first_batch = items[:AT_ONCE]
    ours_dtype = fastest({d: partial(_ours, m, first_batch, sets[:4]) for d, m in models.items()})
    theirs_dtype = fastest({d: partial(_theirs, m, first_batch, sets[:4]) for d, m in theirs.items()})
    ours, hf = partial(_ours, models[ours_dtype]), partial(_theirs, theirs[theirs_dtype])
    _check_same(_ours(models["float32"], first_batch, sets[:2]), _theirs(theirs["float32"], first_batch, sets[:2]))
    about = {
        "benchmark": "sweep", "model": "Gemma 3 270M", "ours_dtype": ours_dtype,
        "theirs": "Hugging Face PyTorch, weights zeroed", "theirs_dtype": theirs_dtype,
    }  # fmt: skip
    batches = [items[begin : begin + AT_ONCE] for begin in range(0, len(items), AT_ONCE)]
    pairs = []
    for batch in batches:
        ours(batch, sets[:16])  # compiles for this batch's shapes, which is not counted
        pairs.append(paired(partial(ours, batch, sets[:16]), partial(hf, batch, sets[:16]), 1, warm=False))
    whole = {"what": f"16 masks x {len(items)} XQuAD prompts", "masks": 16, "prompts": len(items)}
    yield about | whole | _together(pairs)
    for masks in (1, 4, 16, 64):
        times = paired(
            partial(ours, first_batch[:4], sets[:masks]), partial(hf, first_batch[:4], sets[:masks]), min(rounds, 2)
        )
        yield about | {"what": f"{masks} masks x 4 prompts", "masks": masks, "prompts": 4} | times


def _together(pairs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of batches that make one sweep: seconds of all, and the ratio of the whole with its range batch by batch."""
    ours, theirs = (sum(pair[f"{side}_seconds"] for pair in pairs) for side in ("ours", "theirs"))
    ratios = [pair["ratio"] for pair in pairs]
    return {
        "ours_seconds": ours, "theirs_seconds": theirs, "ratio": theirs / ours,
        "ratio_min": min(ratios), "ratio_max": max(ratios),
    }  # fmt: skip


def _items(model: mw.Model, data: str | None) -> list[_Item]:
    """64 prompts of XQuAD, in the order of its files, from each of four languages alike."""
    evaluations = prepare(TASKS["xquad"], data, TableSettings(LANGUAGES, PROMPTS // len(LANGUAGES)))
    items = []
    for language, evaluation in evaluations.items():
        for item, prompt in zip(evaluation.items, evaluation.prompts, strict=True):
            answer = gap(language) + item.references[0]
            tokens, begin = model.encode(prompt + answer), model.encode(prompt).size
            items.append(_Item(prompt, answer, tokens, begin))
    return items


def sets_of_stages(config: ModelConfig, count: int) -> list[NeuronSet]:
    """Sets of 2 % of the neurons, in each of the paper's four stages in turn: speed does not depend on which."""
    split, settings = StageSplit.default(config.num_layers), list(EACH_STAGE.values())
    sets = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        drawn = NeuronSet({g: rng.random((config.num_layers, w)) < 0.02 for g, w in group_widths(config).items()})
        sets.append(settings[seed % len(settings)].choose(drawn, split))
    return sets


def _ours(model: mw.Model, items: Sequence[_Item], sets: Sequence[NeuronSet]) -> np.ndarray:
    masks = [NeuronMask.keep_all(model.config).drop(neurons) for neurons in sets]
    losses = log_likelihoods(model, [a.prompt for a in items], [a.answer for a in items], masks)
    return np.stack([each.nats for each in losses])


def _theirs(hf: Any, items: Sequence[_Item], sets: Sequence[NeuronSet]) -> np.ndarray:
    """Padded on the left, so that the answers end together and logits are made for them alone."""
    import torch

    longest = max(a.tokens.size for a in items)
    keep = max(a.tokens.size - a.begin for a in items) + 1
    padded = np.stack([np.pad(a.tokens, (longest - a.tokens.size, 0)) for a in items])
    ids = torch.tensor(padded, dtype=torch.long, device=hf.device)
    attends = torch.tensor([[0] * (longest - a.tokens.size) + [1] * a.tokens.size for a in items], device=hf.device)
    positions = (attends.cumsum(dim=1) - 1).clamp(min=0)
    nats = np.zeros((len(sets), len(items)))
    for row, neurons in enumerate(sets):
        with zeroed(hf, neurons), torch.inference_mode():
            logits = hf(
                ids, attention_mask=attends, position_ids=positions, use_cache=False, logits_to_keep=keep
            ).logits
            logs = torch.log_softmax(logits.float(), dim=-1)[:, :-1].gather(2, ids[:, -keep + 1 :, None])[..., 0].cpu()
        for column, one in enumerate(items):
            nats[row, column] = float(logs[column, -(one.tokens.size - one.begin) :].sum())
    return nats


def _check_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Both sides did the same work."""
    if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-2):
        raise ValueError(f"the two sides disagree by up to {np.abs(ours - theirs).max()} nats")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Unmasked:
    """Stands where a mask is expected and does nothing: the forward pass as it would be without masks."""

    def applied(self, site: str, x: jax.Array, lay_out: LayOut, generated: jax.Array | None) -> jax.Array:
        return x

    def steered(self, x: jax.Array, generated: jax.Array | None) -> jax.Array:
        return x


@jax.jit
def _unmasked(decoder: Decoder, tokens: jax.Array) -> jax.Array:
    return logits_of(decoder, hidden_states(decoder, tokens, _Unmasked())[0])  # pyright: ignore[reportArgumentType]


def _masking(rounds: int) -> dict[str, Any]:
    """What the mask itself costs: the forward pass with and without one."""
    config = config_from_hf(SMOLLM2)
    decoder = Decoder.random(config, jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (8, 256)).astype(np.int32)
    mask = NeuronMask.keep_all(config).drop(sets_of_stages(config, 1)[0])
    times = paired(
        lambda: forward_decoder(decoder, ids, mask).block_until_ready(),
        lambda: _unmasked(decoder, ids).block_until_ready(),
        rounds,
    )
    return {
        "benchmark": "sweep", "model": "SmolLM2-135M", "what": "masked forward, 8 x 256", "ours_dtype": "float32",
        "theirs": "unmasked", "theirs_dtype": "float32", **times,
    }  # fmt: skip


def _generations(rounds: int) -> Iterator[dict[str, Any]]:
    """Greedy decoding of 64 new tokens for 16 prompts of 64 tokens, against `generate` with its cache."""
    config = config_from_hf(SMOLLM2)
    decoders = {d: Decoder.random(config, jax.random.key(0), d) for d in DTYPES}
    hf = {d: torch_model(config, decoders["float32"], d) for d in DTYPES}
    yield _generation("SmolLM2-135M", decoders, hf, rounds)
    decoders = {d: mw.load_model("gemma3-270m", dtype=d).decoder for d in DTYPES}
    for decoder in decoders.values():  # no row ends before its 64 tokens
        decoder.config = replace(decoder.config, eos_ids=())
    hf = {d: torch_checkpoint(packaged_gguf("gemma3-270m"), d) for d in DTYPES}
    yield _generation("Gemma 3 270M", decoders, hf, rounds)


def _generation(name: str, decoders: dict[str, Decoder], hf: dict[str, Any], rounds: int) -> dict[str, Any]:
    config = decoders["float32"].config
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (16, 64)).astype(np.int32)
    mask = NeuronMask.keep_all(config).drop(sets_of_stages(config, 1)[0])

    def ours(dtype: str) -> Any:
        return mw.generate(mw.Model(decoders[dtype], None, name), list(ids), mask, max_new_tokens=64)

    best, theirs = (
        fastest({d: partial(call, d) for d in DTYPES}) for call in (ours, lambda d: _hf_generate(hf[d], ids))
    )
    return {
        "benchmark": "sweep", "model": name, "what": "generation, 16 x 64 new tokens", "ours_dtype": best,
        "theirs": "Hugging Face generate", "theirs_dtype": theirs,
        **paired(partial(ours, best), partial(_hf_generate, hf[theirs], ids), rounds),
    }  # fmt: skip


def _hf_generate(hf: Any, ids: np.ndarray) -> Any:
    import torch

    tokens = torch.tensor(ids, dtype=torch.long, device=hf.device)
    with torch.inference_mode():
        return hf.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=64, min_new_tokens=64,
            pad_token_id=0, eos_token_id=None,
        ).cpu()  # fmt: skip
