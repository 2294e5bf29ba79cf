"""Array-in, array-out operations that a forward pass does not have. Nothing here knows of models or documents.

    import mwork_kernels
    of_queries, of_keys = mwork_kernels.qk_importance(q, k, cos, sin, token_mask, window, scale=0.125)

One folder per operation: `reference` is the definition (NumPy, float64), one file per backend, `api` chooses. The name
of a folder is its operation here; what else is in the folder is imported from it by name.
"""

from .qk_importance import qk_importance

__all__ = ["qk_importance"]
