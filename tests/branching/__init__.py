"""Which neuron is split next."""
