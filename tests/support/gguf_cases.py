"""The architectures of GGUF: a tiny model of each, with settings that a file can hold."""

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
MINISTRAL3 = {
    "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 6, "beta_fast": 20.0,
    "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3,
}  # fmt: skip
# family in tiny.py -> (architecture in GGUF, settings, further metadata)
CASES = {
    "llama": ("llama", {}, {}),
    "llama-tied": ("llama", {}, {}),
    "llama-biases": ("llama", {}, {}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}, {}),
    "llama-linear": ("llama", {}, {}),
    "llama-yarn": ("llama", {}, {}),
    "mistral": ("llama", {}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {}, {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}, {}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 16}, {"gemma3.attention.sliding_window_pattern": 2}),
    "gemma": ("gemma", {}, {}),
    "cohere": ("command-r", {}, {}),
    "cohere-norm": ("command-r", {}, {}),
    "cohere2": ("cohere2", {"num_hidden_layers": 5, "layer_types": None}, {}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "no_rope_layers": None}, {}),
    "olmo2": ("olmo2", {}, {}),
    "olmo3": ("olmo2", {}, {}),
    "phi3": ("phi3", {}, {}),
    "phi3-partial": ("phi3", {"max_position_embeddings": 192}, {}),
    "granite": ("granite", {}, {}),
    "ministral3": ("mistral3", {"rope_parameters": MINISTRAL3}, {}),
    "apertus": ("apertus", {}, {}),
    "bloom": ("bloom", {"seq_length": 64}, {}),
    "gpt-oss": ("gpt-oss", {}, {}),
    "mixtral": ("llama", {}, {}),
    "qwen3-moe": ("qwen3moe", {"norm_topk_prob": True}, {}),
}
MISTRAL_SMALL = ("mistral", ("mistral3", {"sliding_window": None}, {}))
