"""Models that read images and text: the text model within one, out of its `config.json`.

Its attributes are in `text_config`, without those that have the class's own value. What the model has for images is
not read, neither here nor in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mwork_jax.errors import InputError


@dataclass(frozen=True)
class Wrapper:
    """A model of several parts, by its `model_type`.

    texts: the `model_type`s that its text model may have; the first where `text_config` does not say. of_images: the
    attributes that describe the other parts.
    """

    model_type: str
    texts: tuple[str, ...]
    of_images: frozenset[str]


WRAPPERS: Mapping[str, Wrapper] = {
    wrapper.model_type: wrapper
    for wrapper in (
        Wrapper(
            "gemma3",
            ("gemma3_text",),
            frozenset({
                "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index",
                "boi_token_id", "eoi_token_id", "image_token_id",
            }),
        ),
        Wrapper(
            "mistral3",
            ("mistral", "ministral3"),
            frozenset({
                "vision_config", "image_token_index", "image_token_id", "projector_hidden_act", "vision_feature_layer",
                "multimodal_projector_bias", "spatial_merge_size",
            }),
        ),
    )
}  # fmt: skip
# What the whole model says of its text part too: how it is stored, and its special tokens.
_OF_TEXT = ("eos_token_id", "bos_token_id", "pad_token_id", "tie_word_embeddings", "quantization_config")


def unwrapped(hf: Mapping[str, object], where: str) -> tuple[dict[str, object], dict[str, object], str]:
    """A wrapper's `config.json` as (the attributes of its text model, what else it says, where the first are).

    Raises InputError where both say something else of one attribute.
    """
    wrapper = WRAPPERS[str(hf["model_type"])]
    text, inside = hf.get("text_config"), f"{where}: text_config"
    if not isinstance(text, Mapping):
        raise InputError(f"{where}: text_config is {text!r:.80}; an object that describes the text model is needed")
    attributes = {"model_type": wrapper.texts[0], **text}
    rest = {
        name: v for name, v in hf.items() if name not in ("model_type", "text_config") and name not in wrapper.of_images
    }
    for name in _OF_TEXT:
        value = rest.pop(name, None)
        if value is None or attributes.get(name) == value:
            continue
        if name in text and text[name] is not None and not name.startswith(("eos", "pad")):
            raise InputError(
                f"{where}: {name} is {value!r:.40}, but that of text_config is {text[name]!r:.40}; which one holds?"
            )
        attributes[name] = value  # `generate` of transformers goes by the whole model's
    return attributes, rest, inside
