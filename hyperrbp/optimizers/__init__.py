"""What moves the hyperparameters: Adam, a trust-region search, Optuna's samplers.

An optimizer proposes θ, is given the loss there, with a hypergradient if it asks for one, goes on.
It may import hypergradients, problems, data and runtime; it knows no recipe and no folder.
"""
