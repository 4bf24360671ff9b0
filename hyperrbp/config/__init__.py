"""Recipes: their sections and keys, cross-checks, strict YAML, and the presets that come along.

Reading a recipe runs no code, and imports neither PyTorch nor NumPy.
It may import optimizers and all below them, for their names and options only.
"""
