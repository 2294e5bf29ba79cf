"""What the scripts share that compile for chips which are not here. Needs `pip install libtpu`; no TPU.

Import it before jax: it says that there is no TPU to look for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # its lock is for a chip, and there is none
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mwork_jax.config import ModelConfig
from mwork_jax.model import Decoder, parameter_specs

MISTRAL_7B = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768, "sliding_window": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
CHIP_GIB: Mapping[str, int] = {"TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32}
_SHARDED = ("heads", "kv_heads", "ffn", "vocab")  # logical axes that several chips share


def chips(topology: str) -> Mesh:
    """The chips of a topology (v6e:1x1, v5p:1x1x1, v5e:2x2 ...) on one mesh axis, `model`."""
    shape = [int(n) for n in topology.partition(":")[2].split("x")]
    single = {"chips_per_host_bounds": [1, 1, 1]} if prod(shape) == 1 else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **single)
    return Mesh(np.asarray(found.devices), ("model",), axis_types=(AxisType.Auto,))


def kind_of(mesh: Mesh) -> str:
    """What its chips are called, a key of CHIP_GIB."""
    return mesh.devices.flat[0].device_kind


def array(mesh: Mesh, shape: tuple[int, ...], dtype: Any, axes: tuple[Any, ...] = ()) -> jax.ShapeDtypeStruct:
    """An array that is not there, with its place on the mesh."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))


def decoder_on(config: ModelConfig, mesh: Mesh) -> Decoder:
    """A decoder in bfloat16 whose weights are not there, heads, feed-forward and vocabulary shared by the chips."""
    arrays = {}
    for name, spec in parameter_specs(config).items():
        axes = tuple("model" if axis in _SHARDED else None for axis in spec.axes)
        arrays[name] = array(mesh, spec.shape, jnp.float32 if spec.keep_float32 else jnp.bfloat16, axes)
    return Decoder(config, arrays)  # type: ignore[arg-type]
