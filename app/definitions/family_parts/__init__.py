"""Parts that families are made of: a graph under construction, layers, activations, and the config reader."""
