"""How much each query and key neuron moves the attention weights (PLND, method of the paper's equation for Imp)."""

from .api import qk_importance

__all__ = ["qk_importance"]
