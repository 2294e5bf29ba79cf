"""Array-in, array-out operations that a forward pass does not have. Nothing here knows of models or documents.

One folder per operation: `reference` is the definition (NumPy, float64), one file per backend, `api` chooses.
"""
