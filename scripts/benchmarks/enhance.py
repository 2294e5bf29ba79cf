"""A step of tuning a language's neurons against other ways to train as many numbers, Gemma 3 270M in float32.

Every side is a process of its own, so that its peak memory is its own, and makes its steps in turn with ours. Sides:
full fine-tuning with a masked gradient in PyTorch (how the paper's authors did it), the same in JAX, LoRA with about as
many numbers (peft); and eight runs in one program against eight in a row.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MODEL, SHARE = "gemma3-270m", 0.0075  # of the neurons: what detection finds for a language
ROWS, TIME = 2, 256  # per step
MANY, SHORT = 8, 64  # runs at once, and the length of their one row
LORA_RANK = 3  # 0.71 M numbers, the selection has 0.65 M


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    """Step time and peak memory of each side, and the ratios theirs / ours."""
    with tempfile.TemporaryDirectory() as folder:
        long, short = Path(folder) / "long.npy", Path(folder) / "short.npy"
        np.save(long, _documents(ROWS, TIME))
        np.save(short, _documents(1, SHORT))
        for side in ("torch_masked", "jax_masked", "lora"):
            yield _compared(side, "ours", long, min(rounds, 5))
        yield _compared("in_a_row", "together", short, min(rounds, 3))


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['theirs']}: {row['theirs_seconds']:.2f} s and {row['theirs_gib']:.2f} GiB a step, {row['ours']} "
        f"{row['ours_seconds']:.2f} s and {row['ours_gib']:.2f} GiB: {row['ratio']:.2f} times as fast "
        f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f}), {row['memory_ratio']:.2f} of the memory"
    )


def _compared(theirs: str, ours: str, tokens: Path, rounds: int) -> dict[str, Any]:
    sides = {name: _Side(name, tokens) for name in (ours, theirs)}
    try:
        for side in sides.values():
            side.step()
        times = [(sides[ours].step(), sides[theirs].step()) for _ in range(rounds)]
        reports = {name: side.finish() for name, side in sides.items()}
    finally:
        for side in sides.values():
            side.process.kill()
    ratios = sorted(b / a for a, b in times)
    return {
        "benchmark": "enhance",
        "model": MODEL,
        "ours": ours,
        "theirs": theirs,
        "ours_seconds": statistics.median(a for a, _ in times),
        "theirs_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "ours_gib": reports[ours]["peak_gib"],
        "theirs_gib": reports[theirs]["peak_gib"],
        "memory_ratio": reports[ours]["peak_gib"] / reports[theirs]["peak_gib"],
        "ours_trained": reports[ours]["trained"],
        "theirs_trained": reports[theirs]["trained"],
        "losses": {name: s["losses"] for name, s in reports.items()},
    }


class _Side:
    """One side in a process that makes a step whenever it is told to."""

    def __init__(self, name: str, tokens: Path):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.enhance", name, str(tokens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def step(self) -> float:
        return self._ask("step")["seconds"]

    def finish(self) -> dict[str, Any]:
        return self._ask("finish")

    def _ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("a side of the benchmark ended early; its error is above")
        return json.loads(answer)


def _documents(rows: int, time: int) -> np.ndarray:
    """Real text, int32 [rows, time]: the project's own documents, one after the other."""
    import mwork_jax as mw
    from mwork_jax.corpus import own_corpus

    tokenizer = mw.load_model(MODEL, dtype="bfloat16").tokenizer
    assert tokenizer is not None, "the packaged model has one"
    ids = [i for text in own_corpus("de").detection for i in tokenizer(text)["input_ids"][1:]]
    return np.resize(np.asarray(ids, np.int32), (rows, time))


def _neurons(config: Any, seed: int = 0) -> Any:
    from mwork_jax.neurons import NeuronSet, group_widths

    rng = np.random.default_rng(seed)
    return NeuronSet({g: rng.random((config.num_layers, w)) < SHARE for g, w in group_widths(config).items()})


def _rates() -> Any:
    import jax.numpy as jnp

    from mwork_jax.enhance.optimizer import Rates

    return Rates(*(jnp.float32(x) for x in (1e-3, 1000, 0.05, 0.01, 0.3)))


def _packed(tokens: np.ndarray) -> Any:
    from mwork_jax.corpus import Encoded
    from mwork_jax.enhance.packing import pack

    return pack([Encoded(row, 0) for row in tokens], tokens.shape[1])


Step = Callable[[], float]


def _compact(runs: int, tokens: np.ndarray, in_a_row: bool = False) -> tuple[Step, int]:
    """Ours: `runs` neuron sets on the same rows, in one program or one after the other."""
    import jax
    import jax.numpy as jnp

    from mwork_jax.enhance.neuron_params import index_of, widths
    from mwork_jax.enhance.train import Program, begin, train_step

    decoder = _decoder()
    sets = [_neurons(decoder.config, seed) for seed in range(runs)]
    index = [index_of(s, widths(sets)) for s in sets]
    groups = [index] if not in_a_row else [[i] for i in index]
    program, packed, work = Program(False, 3), _packed(tokens), []
    for group in groups:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *[(i, _rates()) for i in group])
        data = type(packed)(*(np.stack([field[None]] * len(group)) for field in packed))
        work.append([*begin(decoder, *stacked), data])

    def step() -> float:
        loss = 0.0
        for one in work:
            one[1], report = train_step(program, one[0], one[1], one[2])
            loss = float(report.loss[0])
        return loss

    trained = sum(s.counts()[g].sum() * (2 if g == "ffn_up" else 1) for s in sets[:1] for g in s.groups)
    return step, int(trained) * decoder.config.hidden_size


def _jax_masked(tokens: np.ndarray) -> tuple[Step, int]:
    """The whole model's gradient and optimizer state in JAX, masked; all positions' logits at once."""
    import jax
    import optax

    from mwork_jax.enhance import selected_only, selection_in
    from mwork_jax.enhance.neuron_params import index_of, widths
    from mwork_jax.enhance.optimizer import adamw
    from mwork_jax.model.decoder import hidden_states, logits_of
    from mwork_jax.neurons import NeuronMask

    decoder = _decoder()
    neurons, keep, packed = _neurons(decoder.config), NeuronMask.keep_all(decoder.config), _packed(tokens)
    selection = selection_in(decoder, index_of(neurons, widths([neurons])))
    optimizer = selected_only(adamw(_rates()), selection)

    def loss(decoder: Any) -> jax.Array:
        positions = np.arange(packed.tokens.shape[1])[None] - packed.start
        x, _ = hidden_states(decoder, packed.tokens, keep, positions=positions, documents=packed.start)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits_of(decoder, x), packed.targets)
        return (nats * packed.counts).sum() / packed.counts.sum()

    def update(decoder: Any, memory: Any) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(decoder)
        updates, memory = optimizer.update(gradient, memory, decoder)
        return optax.apply_updates(decoder, updates), memory, value

    compiled = jax.jit(update, donate_argnums=(0, 1))
    state = [decoder, optimizer.init(decoder)]

    def step() -> float:
        state[0], state[1], value = compiled(*state)
        return float(value)

    return step, sum(int(x.sum()) for x in jax.tree.leaves(selection))


def _decoder() -> Any:
    """The model without its tokenizer, which no side needs and which takes memory."""
    import jax.numpy as jnp

    from mwork_jax.families import config_from_hf
    from mwork_jax.load.assemble import assemble
    from mwork_jax.load.gguf_file import GGUFCheckpoint
    from mwork_jax.load.packaged import packaged_gguf

    checkpoint = GGUFCheckpoint(packaged_gguf(MODEL))
    config = config_from_hf(checkpoint.hf_config(), where=MODEL)
    return assemble(config, checkpoint, jnp.float32, lambda name, array: jnp.asarray(array))


def _torch_model() -> Any:
    """The same weights in Hugging Face PyTorch, float32."""
    import torch
    import transformers

    from mwork_jax.load.gguf_file import GGUFCheckpoint
    from mwork_jax.load.packaged import packaged_gguf

    checkpoint = GGUFCheckpoint(packaged_gguf(MODEL))
    settings: dict[str, Any] = checkpoint.hf_config()
    settings.pop("model_type")
    hf = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**settings))
    for name in checkpoint.names():
        hf.get_parameter(name).data.copy_(torch.from_numpy(np.array(checkpoint.read(name), np.float32)))
    return hf


def _torch_masked(tokens: np.ndarray) -> tuple[Step, int]:
    """AdamW over all parameters, gradients multiplied with a mask: the paper's authors' way."""
    import torch

    hf = _torch_model()
    from mwork_jax.families import config_from_hf

    config = hf.config.to_dict() | {"architectures": None}
    neurons = _neurons(config_from_hf({k: v for k, v in config.items() if v is not None}))
    masks: dict[str, Any] = {}
    names = {
        "attn_q": ("self_attn.q_proj",), "attn_k": ("self_attn.k_proj",), "attn_v": ("self_attn.v_proj",),
        "ffn_up": ("mlp.gate_proj", "mlp.up_proj"), "ffn_down": ("mlp.down_proj",),
    }  # fmt: skip
    for group, parts in names.items():
        for layer, members in enumerate(neurons.groups[group]):
            mask = torch.from_numpy(np.array(members, np.float32))
            for part in parts:
                masks[f"model.layers.{layer}.{part}.weight"] = mask if group == "ffn_down" else mask[:, None]

    def mask_gradients() -> None:
        for name, parameter in hf.named_parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(masks.get(name, 0.0))

    trained = sum(int(m.sum()) * 640 for m in masks.values())
    return _torch_step(hf, list(hf.parameters()), tokens, mask_gradients), trained


def _lora(tokens: np.ndarray) -> tuple[Step, int]:
    """LoRA on all linear layers."""
    import peft  # pyright: ignore[reportMissingImports]  # only with the extra `bench`

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    hf = peft.get_peft_model(_torch_model(), peft.LoraConfig(r=LORA_RANK, target_modules=targets))
    parameters = [p for p in hf.parameters() if p.requires_grad]
    return _torch_step(hf, parameters, tokens, lambda: None), sum(p.numel() for p in parameters)


def _torch_step(hf: Any, parameters: list[Any], tokens: np.ndarray, before_update: Callable[[], None]) -> Step:
    import torch

    ids = torch.tensor(tokens, dtype=torch.long)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    hf.train()

    def step() -> float:
        optimizer.zero_grad()
        loss = hf(ids, labels=ids, use_cache=False).loss
        loss.backward()
        before_update()
        torch.nn.utils.clip_grad_norm_(parameters, 0.3)
        optimizer.step()
        return float(loss.detach())

    return step


def _side(name: str, tokens: np.ndarray) -> tuple[Step, int]:
    if name in ("together", "in_a_row"):
        return _compact(MANY, tokens, in_a_row=name == "in_a_row")
    sides = {"torch_masked": _torch_masked, "jax_masked": _jax_masked, "lora": _lora}
    return sides[name](tokens) if name in sides else _compact(1, tokens)


def main() -> None:
    """One side: makes a step for each line "step", says what it took, and at "finish" what it needed."""
    answers, sys.stdout = sys.stdout, sys.stderr
    step, trained = _side(sys.argv[1], np.load(sys.argv[2]))
    losses = []
    for request in sys.stdin:
        if request.strip() == "finish":
            # Not ru_maxrss, which begins with what the process that started this one had.
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak = int(status["VmHWM"].split()[0]) / 2**20
            print(json.dumps({"peak_gib": peak, "trained": trained, "losses": losses}), file=answers, flush=True)
            return
        begin = time.perf_counter()
        losses.append(step())
        print(json.dumps({"seconds": time.perf_counter() - begin}), file=answers, flush=True)


if __name__ == "__main__":
    main()
