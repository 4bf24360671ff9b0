"""The tables and figures of Liao et al. 2018: run again, drawn, and compared with the published.

One class for each table or figure, one line in ``hyperrbp.paper.reproduction.ARTIFACTS``.
It may import all other rooms but the command line.
"""
