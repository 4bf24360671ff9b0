"""Everything that is not mathematics: random numbers, meters, traced functions, locks and files.

A module here knows the operating system, the libraries, and nothing of what is computed with them.
It may import only ``hyperrbp.exceptions``.
"""
