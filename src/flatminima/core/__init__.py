"""The network at its weights: data, losses, layers, the loop over the data, and the mapping from statistic to value."""
