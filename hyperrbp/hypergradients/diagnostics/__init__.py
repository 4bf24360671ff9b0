"""What can be measured about a hypergradient: a file for each question, plain numbers for answers.

The questions know nothing of one another; examination.py asks them all, verdict.py sums up.
It may import what hypergradients may, and hypergradients itself.
"""
