"""A step of SGD with momentum, with its products written out by hand.

The general algebra of ``hyperrbp.problems.training.products`` gives the same numbers to rounding;
at the size of the paper's network it takes longer, since it differentiates the update rule anew at
every product.
"""
