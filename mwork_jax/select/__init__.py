"""From neuron scores to the neurons of each language (sections 2 and 3.1 of the paper)."""
