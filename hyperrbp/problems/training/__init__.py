"""A training run as a recurrent map: its state, update rule, objective and hyperparameters."""
