"""Which neuron to split next; never how to bound."""
