"""A recipe made real: its data and problem; and tune, train, check and compare, which use them.

The run folder, its records, checkpoints and results live here. Nothing here prints or draws.
It may import config and all below it.
"""
