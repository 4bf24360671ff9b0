"""The paper's tables and figures: run again, drawn, and compared with the published ones.

One class for each table or figure, one line in ``hyperrbp.paper.reproduction.ARTIFACTS``.
It may import all other rooms but the command line.
"""
