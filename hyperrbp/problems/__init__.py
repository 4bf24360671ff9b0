"""What is iterated: training runs, Hopfield memories, graph networks, any fixed point.

A problem is a map F, its products with vectors, and a loss on its last state (paper, eq. 1 to 3).
It may import data and runtime; it knows no gradient method.
"""
