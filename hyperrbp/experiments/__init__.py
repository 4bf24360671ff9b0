"""A recipe made real: its data and problem, and what is done with them: tune, train, check, compare.

The run folder, its records, checkpoints and results live here. Nothing here prints or draws.
It may import config and all below it.
"""
