"""The slow, obvious interventions that ours are compared with: Hugging Face's model with a hook at every site."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from mwork_jax.intervention import Intervention
from support.slow_deactivation import hf_places, layers_of
from support.tiny import torch

_ACTIVATIONS = ("mlp.act_fn", "mlp.activation_fn", "mlp.gelu_impl")
_DOWN = ("mlp.down_proj", "mlp.dense_4h_to_h")


class Hooks:
    """Forward hooks that do what an intervention says, on every layer of a model. `is_generated` bool [b, t] of the
    tokens that it is called with; None: those of the first call are the prompt, those of later calls are generated."""

    def __init__(self, hf, config, edit: Intervention, is_generated=None):
        self.hf, self.config, self.edit, self.given = hf, config, edit, is_generated
        self.calls = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        with ExitStack() as hooks:
            first = layers_of(self.hf)[0].register_forward_pre_hook(self._count)
            hooks.callback(first.remove)
            for index, layer in enumerate(layers_of(self.hf)):
                for hook in self._of_layer(index, layer, hooks):
                    hooks.callback(hook.remove)
            yield

    def _count(self, *_) -> None:
        self.calls += 1

    def _of_layer(self, index, layer, hooks) -> Iterator:
        for site in ("attn_q", "attn_k", "attn_v"):
            width = getattr(self.edit.factors, site).shape[1]
            ((name, rows),) = hf_places(self.config, site, np.arange(width))
            module = layer.get_submodule(name)
            yield module.register_forward_hook(self._rows(index, site, rows))
        if self.config.num_experts:
            experts, forward = layer.mlp.experts, layer.mlp.experts.forward
            experts.forward = lambda *args, **others: self._experts(index, experts, *args, **others)
            hooks.callback(setattr, experts, "forward", forward)
        else:
            (act,) = (layer.get_submodule(name) for name in _ACTIVATIONS if _has(layer, name))
            (down,) = (layer.get_submodule(name) for name in _DOWN if _has(layer, name))
            yield act.register_forward_hook(lambda m, i, out: self._affine(index, "gate", out))
            yield down.register_forward_pre_hook(lambda m, i: (self._affine(index, "neuron", i[0]), *i[1:]))
        yield layer.register_forward_hook(self._steer(index))

    def _acts(self, index: int, x):
        """Whether the intervention acts on each token of x [b, t, ...]."""
        generated = np.full(x.shape[:2], self.calls > 1) if self.given is None else self.given
        on = np.where(generated, np.asarray(self.edit.on_generated)[index], np.asarray(self.edit.on_prompt)[index])
        return torch.tensor(on).reshape(*on.shape, *(1,) * (x.ndim - 2))

    def _affine(self, index: int, site: str, x):
        factor, offset = (_tensor(getattr(each, site)[index]) for each in (self.edit.factors, self.edit.offsets))
        return torch.where(self._acts(index, x), x * factor + offset, x)

    def _rows(self, index: int, site: str, rows):
        def hook(module, inputs, out):
            changed = out.clone()
            changed[..., rows] = self._affine(index, site, out[..., rows])
            return changed

        return hook

    def _steer(self, index: int):
        def hook(module, inputs, out):
            x = out[0] if isinstance(out, tuple) else out
            steered = torch.where(self._acts(index, x), x + _tensor(self.edit.steering[index]), x)
            return (steered, *out[1:]) if isinstance(out, tuple) else steered

        return hook

    def _experts(self, index: int, experts, hidden, router_indices=None, routing_weights=None, *more, **others):
        """Token by token and expert by expert."""
        batch_time = self._shape(hidden)
        flat, sent = hidden.reshape(-1, hidden.shape[-1]), router_indices.reshape(-1, router_indices.shape[-1])
        shares = routing_weights.reshape(sent.shape) if routing_weights.shape[-1] == sent.shape[-1] else routing_weights
        acts = self._acts(index, torch.zeros(*batch_time, 1)).reshape(-1)
        width, total = self.config.intermediate_size, torch.zeros_like(flat)
        for token in range(flat.shape[0]):
            for place, expert in enumerate(sent[token].tolist()):
                own = slice(expert * width, (expert + 1) * width)
                share = shares[token, place] if shares.shape[-1] == sent.shape[-1] else shares[token, expert]
                total[token] += share * self._expert(index, experts, expert, own, flat[token], bool(acts[token]))
        return total.reshape(hidden.shape)

    def _shape(self, hidden) -> tuple[int, int]:
        if hidden.ndim == 3:
            return hidden.shape[0], hidden.shape[1]
        batch = self.batch
        return batch, hidden.shape[0] // batch

    def _expert(self, index: int, experts, expert: int, own: slice, x, acts: bool):
        if self.config.family == "gpt_oss":
            inner = x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
            gate, up = inner[::2].clamp(max=experts.limit), inner[1::2].clamp(-experts.limit, experts.limit) + 1
            activated = gate * torch.sigmoid(gate * experts.alpha)
        else:
            gate, up = (experts.gate_up_proj[expert] @ x).chunk(2)
            activated = experts.act_fn(gate)
        product = self._own(index, "gate", own, activated, acts) * up
        product = self._own(index, "neuron", own, product, acts)
        if self.config.family == "gpt_oss":
            return product @ experts.down_proj[expert] + experts.down_proj_bias[expert]
        return experts.down_proj[expert] @ product

    def _own(self, index: int, site: str, own: slice, x, acts: bool):
        factor, offset = (_tensor(getattr(each, site)[index])[own] for each in (self.edit.factors, self.edit.offsets))
        return x * factor + offset if acts else x


def _has(layer, name: str) -> bool:
    try:
        layer.get_submodule(name)
    except AttributeError:
        return False
    return True


def _tensor(array):
    return torch.tensor(np.asarray(array))


def hooked_logits(hf, config, edit: Intervention, ids: np.ndarray, is_generated: np.ndarray | None = None):
    """Hugging Face's logits under an intervention: float32 [b, t, vocab]. is_generated: bool [b, t]; None for none."""
    given = np.zeros(ids.shape, bool) if is_generated is None else is_generated
    hooks = Hooks(hf, config, edit, given)
    hooks.batch = ids.shape[0]
    with torch.no_grad(), hooks.on():
        return hf(torch.tensor(ids, dtype=torch.long), use_cache=False).logits


def hooked_tokens(hf, config, edit: Intervention, ids: np.ndarray, new: int) -> np.ndarray:
    """The `new` tokens that Hugging Face's model generates greedily after one prompt, int32 [time]."""
    hooks = Hooks(hf, config, edit)
    hooks.batch = 1
    with torch.no_grad(), hooks.on():
        out = hf.generate(
            torch.tensor(ids[None], dtype=torch.long),
            attention_mask=torch.ones(1, ids.size, dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
        )
    return out[0, ids.size :].numpy().astype(np.int32)
