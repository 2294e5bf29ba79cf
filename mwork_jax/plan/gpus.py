"""GPUs that are not here: what NVIDIA's public documents say of them, and their descriptions, to compile for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import jax

from mwork_jax.errors import InputError

_KIB, _MIB = 2**10, 2**20
_INSTALL = "pip install 'mwork-jax[plan-gpu]'"
# Without a GPU there is nothing to time, so the compiler chooses algorithms by rule. Products stay calls of cuBLAS: how
# a Triton product is tiled would have to be timed too.
COMPILER_OPTIONS: Mapping[str, bool | int] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Generation:
    """What all GPUs of one compute capability share. lanes: float32 operations that a processor (SM) starts in a cycle,
    of exponentials and the like 16; shared_kib: shared memory of a processor, of which a block may have all but 1;
    threads: that a processor holds."""

    capability: tuple[int, int]
    lanes: int
    shared_kib: int
    threads: int


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability" and "Arithmetic Instructions".
_AMPERE = Generation((8, 0), 64, 164, 2048)
_AMPERE_CARD = Generation((8, 6), 128, 100, 1536)
_ADA = Generation((8, 9), 128, 100, 1536)
_HOPPER = Generation((9, 0), 128, 228, 2048)
_BLACKWELL = Generation((10, 0), 128, 228, 2048)
SPECIAL_LANES = 16  # exponentials, logarithms, roots and the like in a cycle of a processor, in all of these


@dataclass(frozen=True)
class Gpu:
    """One GPU. Peaks are those of its data sheet, without sparsity, which no program reaches.

    processors (SMs), gigahertz (boost); flops: bfloat16 with float32 sums, per second; memory_mib: as the driver gives
    it; memory: bytes per second; cache_mib: L2; link: what joins the GPUs of a node, and the bytes per second that a
    GPU sends over it, one direction; between: bytes per second that a GPU sends to other nodes (see GPUS).
    """

    name: str
    kind: str  # as the driver calls it
    generation: Generation
    processors: int
    gigahertz: float
    flops: float
    memory_mib: int
    memory: float
    cache_mib: int
    link: str
    link_bytes: float
    between: float

    @property
    def vector(self) -> float:
        """Element-wise operations per second; a multiply and add is one."""
        return self.processors * self.generation.lanes * self.gigahertz * 1e9

    @property
    def special(self) -> float:
        """Exponentials and the like per second."""
        return self.processors * SPECIAL_LANES * self.gigahertz * 1e9

    @property
    def exact_passes(self) -> float:
        """bfloat16 products that take as long as a float32 product of the highest precision, on the plain cores."""
        return self.flops / (2 * self.vector)


# Processors, clocks, peaks, memory, caches and NVLink are from NVIDIA's "NVIDIA A100 Tensor Core GPU" (SXM, 80
# GB) and "NVIDIA A100 Tensor Core GPU Architecture"; "NVIDIA H100 Tensor Core GPU" (SXM) and "NVIDIA H100 Tensor Core
# GPU Architecture"; "NVIDIA H200 Tensor Core GPU" (SXM); "NVIDIA DGX B200" and "NVIDIA Blackwell Architecture Technical
# Brief" (processors and cache, which they lack, as OpenXLA's specification of a B200); "NVIDIA L40S"; "NVIDIA Ada
# GPU Architecture" (GeForce RTX 4090); "NVIDIA RTX A6000" and "NVIDIA Ampere GA102 GPU Architecture". Memory in MiB is
# what nvidia-smi shows. PCIe 4.0 x16 is 32 GB/s in one direction; the bridge that joins two A6000 is left out. Between
# nodes: an adapter of 400 Gbit/s (DGX H100, H200, B200) or 200 Gbit/s (DGX A100) for each GPU, as those have; for the
# other cards 25 Gbit/s each, which is assumed. `--link` and `--between-nodes` say otherwise.
GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", "H100", _HOPPER, 132, 1.98, 989.4e12, 81559, 3.35e12, 50, "NVLink", 450e9, 50e9),
        Gpu("h200", "H200", _HOPPER, 132, 1.98, 989.4e12, 143771, 4.8e12, 50, "NVLink", 450e9, 50e9),
        Gpu("b200", "B200", _BLACKWELL, 148, 1.965, 2250e12, 183359, 8e12, 126, "NVLink", 900e9, 50e9),
        Gpu("a100", "A100", _AMPERE, 108, 1.41, 312e12, 81920, 2.039e12, 40, "NVLink", 300e9, 25e9),
        Gpu("l40s", "L40S", _ADA, 142, 2.52, 362e12, 46068, 864e9, 96, "PCIe", 32e9, 3.125e9),
        Gpu("rtx4090", "RTX 4090", _ADA, 128, 2.52, 165.2e12, 24564, 1.008e12, 72, "PCIe", 32e9, 3.125e9),
        Gpu("a6000", "RTX A6000", _AMPERE_CARD, 84, 1.8, 154.8e12, 49140, 768e9, 6, "PCIe", 32e9, 3.125e9),
    )
}


def gpu_called(kind: str) -> Gpu | None:
    """The GPU of GPUS with this name of a device (`jax.Device.device_kind`), as NVIDIA H100 80GB HBM3."""
    words = f" {kind.replace('-', ' ')} "
    return next((gpu for gpu in GPUS.values() if f" {gpu.kind} " in words), None)


def description(gpu: Gpu) -> str:
    """XLA's `GpuTargetConfig` of a GPU, as a text proto. Limits of threads, blocks and registers are those of every
    compute capability from 8.0 to 10.0 (CUDA C++ Programming Guide)."""
    generation, (major, minor) = gpu.generation, gpu.generation.capability
    info: dict[str, int | float] = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": generation.threads,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "shared_memory_per_block": 48 * _KIB,
        "shared_memory_per_block_optin": (generation.shared_kib - 1) * _KIB,
        "shared_memory_per_core": generation.shared_kib * _KIB,
        "core_count": gpu.processors,
        "fpus_per_core": generation.lanes,
        "clock_rate_ghz": gpu.gigahertz,
        "memory_bandwidth": int(gpu.memory),
        "l2_cache_size": gpu.cache_mib * _MIB,
        "device_memory_size": gpu.memory_mib * _MIB,
    }
    fields = "\n".join(f"  {name}: {value}" for name, value in info.items())
    return (
        f"gpu_device_info {{\n{fields}\n  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\nruntime_version { major: 12 minor: 9 }\n'
        f'device_description_str: "NVIDIA {gpu.kind}"\n'
    )


def described_gpus(gpu: Gpu, nodes: int, each: int) -> list[Any]:
    """Devices to compile for: `each` GPUs in every node, those of a node one after the other. Raises InputError where
    the compiler is missing, is of another version than JAX, or refuses."""
    check_installed()
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=description(gpu), topology=f"1x{nodes}x{each}"
        )
    except Exception as error:  # the plugin raises several kinds
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"XLA's compiler for NVIDIA GPUs cannot describe {nodes} x {gpu.name}:{each} ({reason})"
        ) from None
    return list(topology.devices)


def check_installed() -> None:
    """Raises InputError where a piece of XLA's compiler for NVIDIA GPUs is missing or of another version than JAX."""
    found = next((n for n in (12, 13) if find_spec(f"jax_cuda{n}_plugin") or _has_library(n)), 12)
    for package, present in ((f"jax-cuda{found}-plugin", find_spec(f"jax_cuda{found}_plugin") is not None),
                             (f"jax-cuda{found}-pjrt", _has_library(found))):  # fmt: skip
        if not present:
            raise InputError(f"for GPUs mwork plan compiles with {package}, which is not installed: {_INSTALL}")
        installed = _version(package)
        # A release of the plugin may have a fourth number.
        if installed is not None and installed.split(".")[:3] != jax.__version__.split(".")[:3]:
            raise InputError(
                f"{package} is {installed} and jax is {jax.__version__}: they must be of one version, {_INSTALL}"
            )


def _has_library(version_of_cuda: int) -> bool:
    return find_spec("jax_plugins") is not None and find_spec(f"jax_plugins.xla_cuda{version_of_cuda}") is not None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
