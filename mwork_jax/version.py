"""The version of this package, in the one place that states it: pyproject.toml reads it from here."""

__version__ = "0.2.0.dev0"
