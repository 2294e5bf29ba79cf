"""What a decoder is, as one frozen value, whatever its family. `mwork_jax.families` makes it from a `config.json`."""

from __future__ import annotations

from dataclasses import dataclass

FULL_ATTENTION = 0  # the window of a layer that sees the whole past


_ROPE_KINDS = ("default", "linear", "llama3", "yarn", "longrope", "none")


@dataclass(frozen=True)
class Rope:
    """One rotary position embedding, with the names of Hugging Face's `rope_parameters`.

    theta: the base; a pair of a head's entries turns by theta^(-2i/d) radians per position.
    kind: how the model was stretched to a longer context: "default" (it was not), "linear", "llama3", "yarn" or
    "longrope"; "none" in layers that rotate nothing.
    factor: by how much the context was stretched (linear, llama3, yarn).
    low_freq_factor, high_freq_factor: llama3: pairs that turn less often than the first within the original context
    are slowed by `factor`, pairs that turn more often than the second are kept.
    original_length: tokens of the context before it was stretched (llama3, yarn, longrope), and the step of
    `query_scaling`.
    beta_fast, beta_slow: yarn: turns within the original context where its ramp begins and ends.
    truncate: yarn: whether the ends of the ramp are rounded to whole pairs.
    attention_factor: the temperature of yarn and longrope; it multiplies cos and sin.
    pair_factors, long_pair_factors: longrope: by how much each pair is slowed within the original context, and beyond.
    query_scaling: b of log-scaled queries (Ministral 3): times 1 + b log(1 + floor(position /
    original_length)), 0 for none.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_length: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    pair_factors: tuple[float, ...] = ()
    long_pair_factors: tuple[float, ...] = ()
    query_scaling: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """The shape and the arithmetic of one decoder.

    Letters used in every shape comment: L layers, D hidden size, H query heads, G key/value heads, d head size,
    F feed-forward size, V vocabulary.

    family: the `model_type` of its config.json, a key of `families.FAMILIES`.
    vocab_size: V. hidden_size: D. num_layers: L. num_heads: H. num_kv_heads: G, a divisor of H. head_dim: d, even.
    intermediate_size: F.
    norm_eps: what every norm adds to the mean square.
    ropes: the distinct rotary embeddings of the model.
    layer_rope: per layer, an index into `ropes`.
    windows: per layer, how many past positions a query sees, itself included; FULL_ATTENTION for all of them.
    activation: of the feed-forward's gate: "silu", "gelu", "gelu_tanh" or "xielu" (Apertus; it has parameters).
    gated: whether act(gate) multiplies `up`; without, the feed-forward is down(act(up)) (BLOOM, Apertus).
    num_experts: E, of a feed-forward with experts, each of size `intermediate_size`; 0 without. experts_per_token: how
    many of them a token goes to. shares_add_up: whether their shares in the result add up to 1, or are what softmax
    over all experts gives them. router_bias: whether the router has a bias.
    act_limit, act_slope: of gpt-oss: gate and up are cut at this size, sigmoid takes slope * gate, and 1 is added to
    up; None and 1 elsewhere.
    sinks: whether every head has a number that takes part in softmax without a value (gpt-oss).
    max_length: tokens of the context that the model was made for.
    tie_embeddings: whether the head is the embedding table.
    norm: "rms" divides by the root mean square, "layer" subtracts the mean before (BLOOM, Cohere).
    norm_biases: whether norms have biases (BLOOM).
    norm_offset: added to every norm's weight; 1 for Gemma, whose RMSNorm multiplies by (1 + w).
    pre_norms, post_norms: whether a norm comes before attention and the feed-forward, and whether one follows each
    (Gemma has both, OLMo 2 the second alone).
    parallel: whether attention and feed-forward read the same normed input, and both are added to it (Cohere).
    embed_norm: whether a norm follows the embeddings (BLOOM).
    qk_norm: how queries and keys are normalised before RoPE: "head", each head on its own with shared weights (Qwen 3,
    Gemma 3); "own", with weights of each head (Command R+); "width", all heads together (OLMo 2); None, not at all.
    qkv_bias, attn_out_bias, mlp_bias: whether these matrices have biases.
    interleaved: whether RoPE turns neighbouring entries of a head (2i, 2i + 1) rather than those of its halves (i, i +
    d / 2) (Cohere).
    rotary_dim: how many entries of a head RoPE turns, the first ones; None for all (Phi-4 mini turns 96 of 128).
    alibi: whether distance is subtracted from the scores, head by head, instead of RoPE (BLOOM).
    attn_softcap, final_softcap: the soft cap of the attention scores and of the logits (Gemma 2); None for none.
    embed_scale: multiplies the embeddings.
    attn_scale: multiplies q . k.
    residual_scale: multiplies what attention and feed-forward add to the residual stream (Granite).
    logit_scale: multiplies the logits (Cohere, Granite).
    bos_id: the token that a text begins with; None where there is none. eos_ids: the tokens that end a text.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    ropes: tuple[Rope, ...]
    layer_rope: tuple[int, ...]
    windows: tuple[int, ...]
    activation: str = "silu"
    gated: bool = True
    num_experts: int = 0
    experts_per_token: int = 0
    shares_add_up: bool = True
    router_bias: bool = False
    act_limit: float | None = None
    act_slope: float = 1.0
    sinks: bool = False
    max_length: int = 2048
    tie_embeddings: bool = False
    norm: str = "rms"
    norm_biases: bool = False
    norm_offset: float = 0.0
    pre_norms: bool = True
    post_norms: bool = False
    parallel: bool = False
    embed_norm: bool = False
    qk_norm: str | None = None
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False
    interleaved: bool = False
    rotary_dim: int | None = None
    alibi: bool = False
    attn_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float = 1.0
    attn_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for what no decoder is, which would else be computed as something near to it."""
        problems = {
            "norm": self.norm not in ("rms", "layer"),
            "qk_norm": self.qk_norm not in (None, "head", "own", "width"),
            "qk_norm over the width is a root-mean-square norm": self.qk_norm == "width" and self.norm != "rms",
            "ropes": any(rope.kind not in _ROPE_KINDS for rope in self.ropes),
            "layer_rope": any(not 0 <= index < len(self.ropes) for index in self.layer_rope),
            "experts_per_token": self.num_experts > 0 and not 0 < self.experts_per_token <= self.num_experts,
            "act_limit needs a gate": self.act_limit is not None and not self.gated,
            "router_bias needs experts": self.router_bias and not self.num_experts,
        }
        if wrong := [name for name, is_wrong in problems.items() if is_wrong]:
            raise ValueError(f"configuration of {self.family}: {', '.join(wrong)}")

    @property
    def ffn_width(self) -> int:
        """Feed-forward neurons of a layer: of all experts, one after the other, where there are any."""
        return max(1, self.num_experts) * self.intermediate_size

    @property
    def queries_per_group(self) -> int:
        """R: how many query heads share one key/value head."""
        return self.num_heads // self.num_kv_heads
