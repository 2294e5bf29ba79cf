"""Which packages there are; everything else is in pyproject.toml.

A top-level package called `kernels` would collide with one that transformers looks for, so the folder `kernels/` is
installed as `mwork_kernels`.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["mwork_jax", "mwork_jax.*"]),
        "mwork_kernels",
        *(f"mwork_kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"mwork_kernels": "kernels"},
)
