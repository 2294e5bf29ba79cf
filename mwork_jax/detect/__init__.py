"""From documents to neuron scores: importance (PLND, section 2 of the paper), activations, order statistics."""
