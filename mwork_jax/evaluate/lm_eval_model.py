"""A model of this project for lm-evaluation-harness, with neurons off or an intervention where asked.

    from lm_eval import simple_evaluate
    from mwork_jax.evaluate.lm_eval_model import MworkLM
    german = MworkLM("gemma3-270m", neurons="mwork-results/neurons/de.json", off="under")
    simple_evaluate(model=german, tasks=["xnli_de"])

What is read and written is what the harness's own `hf` model reads and writes: its rules for trailing spaces, BOS,
rolling windows, stop strings and what is cut on the left. The harness needs no PyTorch for that, and neither does this.
Importing this module also registers the model in the harness, as `mwork`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from mwork_jax.errors import InputError, whole_number
from mwork_jax.evaluate.continuations import TokenPair, continuations
from mwork_jax.intervene.stages import StageSetting, StageSplit
from mwork_jax.intervention import Edit
from mwork_jax.load import load_model
from mwork_jax.model.generate import generations
from mwork_jax.model.model import Model
from mwork_jax.model.sampling import sampling_of
from mwork_jax.neurons import NeuronMask, NeuronSet
from mwork_jax.runtime.time_limit import time_limit

INSTALL = "pip install 'mwork-jax[lm-eval]'"
try:
    from lm_eval.api.model import LM as LM
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise InputError(f"lm-evaluation-harness is missing ({error}); {INSTALL}") from None

Response = tuple[float, bool] | float | str  # to loglikelihood, loglikelihood_rolling, generate_until
_MAX_GEN_TOKS = 256  # where a task says nothing, as `hf` has it
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given holds
_NO_CHANGE = {"num_beams": 1, "repetition_penalty": 1.0}  # what changes nothing may be said
_TEMPLATE_SECONDS = 10


class Request(Protocol):
    """What the harness asks: its `Instance`."""

    @property
    def args(self) -> tuple: ...


@dataclass(frozen=True)
class Decoding:
    """How answers are written: at most so many tokens, up to the first of the stop strings; a temperature of 0 takes
    the likeliest tokens."""

    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float = 0.0
    top_p: float = 1.0

    @classmethod
    def of(cls, options: Mapping[str, object]) -> Decoding:
        """From a task's generation_kwargs. Raises InputError for what cannot be done here."""
        left: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        until = left.pop("until", [])
        limits = [left.pop(name) for name in _LIMITS if name in left]
        temperature, top_p = float(left.pop("temperature", 0.0)), float(left.pop("top_p", 1.0))
        sample = left.pop("do_sample", temperature > 0)
        if not sample:  # then nothing that shapes the draw counts
            temperature, top_p = 0.0, 1.0
            left.pop("top_k", None)
        wrong = [name for name, value in left.items() if name not in _NO_CHANGE or value != _NO_CHANGE[name]]
        if wrong:
            raise InputError(
                f"generation_kwargs: {wrong[0]}: {left[wrong[0]]!r:.40} cannot be done here; until, max_gen_toks, "
                "do_sample, temperature and top_p can"
            )
        stop = [until] if isinstance(until, str) else until
        if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
            raise InputError(f"generation_kwargs: until is {until!r:.60}; a string or a list of them is needed")
        count = whole_number("generation_kwargs: max_gen_toks", limits[0] if limits else _MAX_GEN_TOKS, 1)
        return cls(count, tuple(text for text in stop if text), temperature, top_p)


class MworkLM(TemplateLM):
    """A model for `lm_eval.simple_evaluate(model=...)`.

    pretrained: a Model, or what `mw.load_model` loads, with `dtype`. mask: a NeuronMask or Intervention; or neurons: a
    NeuronSet or its file, of which `off` (all, or parts as in under+gen) is switched off, with n1 and n2 layers in the
    understanding and the generation stage. max_length: the context, the model's own by default. add_bos_token,
    prefix_token_id: as of `hf`. tokens_per_batch: as of `mw.generate`; the harness's own batch_size,
    max_batch_size and device are taken and do not count. seed: of answers that are drawn at random.

    Raises InputError for a model without a tokenizer, and as `mw.load_model` and `NeuronMask.drop` do.
    """

    def __init__(
        self,
        pretrained: Model | str = "gemma3-270m",
        mask: Edit | None = None,
        *,
        neurons: NeuronSet | str | Path | None = None,
        off: str = "all",
        n1: int | None = None,
        n2: int | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        tokens_per_batch: int = 4096,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        model = load_model(pretrained, dtype=dtype) if isinstance(pretrained, str) else pretrained
        if model.tokenizer is None:
            raise InputError(f"{model.source}: no tokenizer, and the harness asks in text; add tokenizer.json")
        if mask is not None and neurons is not None:
            raise InputError("mask and neurons are both given; give one of them")
        self.engine, self.tokenizer = model, model.tokenizer
        self.mask = NeuronMask.keep_all(model.config) if mask is None else mask
        if neurons is not None:
            own = neurons if isinstance(neurons, NeuronSet) else NeuronSet.load(neurons)
            split = StageSplit.of(model.config.num_layers, n1, n2)
            self.mask = self.mask.drop(StageSetting.parse(off).choose(own, split))  # type: ignore[union-attr]
        longest = model.config.max_length
        self.max_length = longest if max_length is None else min(whole_number("max_length", max_length, 2), longest)
        self.add_bos_token, self._prefix = add_bos_token, prefix_token_id
        self.tokens_per_batch, self.seed = tokens_per_batch, seed
        self._ending: Model | None = None

    # What the harness calls.

    def loglikelihood(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self.answers("loglikelihood", requests, [self.mask])[0]  # type: ignore[return-value]

    def loglikelihood_rolling(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[float]:
        return self.answers("loglikelihood_rolling", requests, [self.mask])[0]  # type: ignore[return-value]

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        return self.answers("generate_until", requests, [self.mask])[0]  # type: ignore[return-value]

    def answers(
        self,
        kind: str,
        requests: Sequence[Request],
        masks: Sequence[Edit],
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Response]]:
        """The responses to requests of one kind under each mask, side by side: [masks][requests]. progress is called
        with the number of requests done, those of all masks together. Raises InputError, naming the request."""
        if not requests:
            return [[] for _ in masks]
        if kind == "loglikelihood":
            pairs = [self._pair(*request.args) for request in requests]
            found = self._scored(pairs, masks, progress)
            return [
                list(zip(nats.tolist(), greedy.tolist(), strict=True))
                for nats, greedy in zip(found.nats, found.greedy, strict=True)
            ]
        if kind == "loglikelihood_rolling":
            return self._rolling([request.args[0] for request in requests], masks, progress)
        if kind == "generate_until":
            return self._written([request.args for request in requests], masks, progress)
        raise InputError(f"the harness asks for {kind}, which a model of text cannot answer")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages in the model's chat template. Raises InputError where it has none, or fails."""
        from jinja2.exceptions import TemplateError

        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError(f"{self.engine.source}: no chat template (models tuned to follow instructions have one)")

        def rendered(history: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        with time_limit(_TEMPLATE_SECONDS, f"{self.engine.source}: its chat template takes over {_TEMPLATE_SECONDS} s"):
            try:
                return rendered(chat_history)
            except TemplateError:  # of a model without a system message, as `hf` has it
                try:
                    return rendered([message for message in chat_history if message["role"] != "system"])
                except TemplateError as error:
                    raise InputError(f"{self.engine.source}: its chat template fails ({error!s:.160})") from None

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that comes before a text without a context."""
        ids = (self._prefix, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        known = next((token for token in ids if token is not None), None)
        if known is None:
            raise InputError(f"{self.engine.source}: neither BOS nor EOS to begin a text with; give prefix_token_id")
        return known

    @property
    def max_gen_toks(self) -> int:
        return _MAX_GEN_TOKS

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """The tokens of a text, with special ones as the tokenizer has them; without where it begins with a BOS."""
        added = self.add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(self._prefix_text):
            added = False
        return self.tokenizer.encode(string, **({} if added is None else {"add_special_tokens": added}))

    @cached_property
    def _prefix_text(self) -> str:
        return self.tokenizer.decode([self.prefix_token_id])

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **options: Any) -> list[tuple[float, bool]]:
        found = self._scored([(before, after) for _, before, after in requests], [self.mask])
        return list(zip(found.nats[0].tolist(), found.greedy[0].tolist(), strict=True))

    # What is asked, as tokens.

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            return self._encode_pair(context, continuation)
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        return (tokens[:1], tokens[1:]) if tokens[:1] == [self.prefix_token_id] else ([self.prefix_token_id], tokens)

    def _scored(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        masks: Sequence[Edit],
        progress: Callable[[int], None] | None = None,
    ) -> Any:
        """Pairs under each mask; of a context that is too long, the beginning is left out."""
        cut = []
        for index, (before, after) in enumerate(pairs):
            if not after or len(after) > self.max_length:
                what = "no token" if not after else f"{len(after)} tokens, the model's context is {self.max_length}"
                raise InputError(f"request {index + 1}: its continuation has {what}")
            room = self.max_length + 1 - len(after)
            cut.append(TokenPair(np.asarray(before[-room:], np.int32), np.asarray(after, np.int32)))
        return continuations(self.engine, cut, masks, tokens_per_batch=self.tokens_per_batch, progress=progress)

    def _rolling(
        self, texts: Sequence[str], masks: Sequence[Edit], progress: Callable[[int], None] | None
    ) -> list[list[Response]]:
        """Whole texts, in windows as long as the context, each token predicted once."""
        windows, of_text = [], []
        for index, text in enumerate(texts):
            tokens = self.tok_encode(text)
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append(make_disjoint_window(window))
                of_text.append(index)
        nats = np.zeros((len(masks), len(texts)))
        if windows:

            def step(done: int) -> None:
                if progress is not None:
                    progress(done * len(texts) // len(windows))

            for own, found in zip(nats, self._scored(windows, masks, step).nats, strict=True):
                np.add.at(own, of_text, found)
        return [list(own) for own in nats.tolist()]

    def _written(
        self, asked: Sequence[tuple], masks: Sequence[Edit], progress: Callable[[int], None] | None
    ) -> list[list[Response]]:
        """Answers to prompts; those that are written in one way run together."""
        ways: dict[Decoding, list[int]] = {}
        for index, (_, options) in enumerate(asked):
            ways.setdefault(Decoding.of(options), []).append(index)
        answers: list[list[Response]] = [[""] * len(asked) for _ in masks]
        done = 0
        for decoding, members in ways.items():
            room = self.max_length - decoding.max_new_tokens
            if room < 1:
                raise InputError(
                    f"{decoding.max_new_tokens} new tokens asked, the model's context is {self.max_length}; give a "
                    "smaller max_gen_toks"
                )
            prompts = [np.asarray(self.tok_encode(asked[index][0])[-room:], np.int32) for index in members]
            drawn = sampling_of(decoding.temperature, decoding.top_p, jax.random.key(self.seed))
            before = done

            def step(count: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + count)

            texts = generations(
                self._ending_at(decoding.stop),
                prompts,
                masks,
                max_new_tokens=decoding.max_new_tokens,
                stop=decoding.stop,
                tokens_per_batch=self.tokens_per_batch,
                progress=step,
                sampling=drawn,
            )
            for own, written in zip(answers, texts, strict=True):
                for index, text in zip(members, written, strict=True):
                    own[index] = self._alone(text)
            done += len(members) * len(masks)
        return answers

    def _ending_at(self, stop: Sequence[str]) -> Model:
        """The model, whose answers also end at the tokenizer's EOS and at a stop string that is a special token: the
        text of an answer has none of those to be found in."""
        special = dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))
        config = self.engine.config
        ends = {special[text] for text in stop if text in special} | {self.tokenizer.eos_token_id} - {None}
        if ends <= set(config.eos_ids):
            return self.engine
        if self._ending is None or set(self._ending.config.eos_ids) != ends | set(config.eos_ids):
            decoder = nnx.clone(self.engine.decoder)
            decoder.config = replace(config, eos_ids=(*config.eos_ids, *sorted(ends - set(config.eos_ids))))
            self._ending = replace(self.engine, decoder=decoder)
        return self._ending

    def _alone(self, text: str) -> str:
        """An answer as the tokenizer has it by itself: some drop the space before the first word of a text."""
        return text.removeprefix(" ") if self._drops_first_space else text

    @cached_property
    def _drops_first_space(self) -> bool:
        one, two = (self.tokenizer.encode(text, add_special_tokens=False) for text in ("a", "a a"))
        return two[: len(one)] == one and self.tokenizer.decode(two[len(one) :]) == "a"


register_model("mwork")(MworkLM)  # as a decorator it would hide the class from type checkers

if __name__ == "__main__":  # the harness's own command, with this model in its registry
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
