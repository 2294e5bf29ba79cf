from mwork_jax.select.rules import MODES, select_neurons
__all__ = ["MODES", "select_neurons"]
