"""What a recipe may say: its sections and keys, cross-checks, built-in recipes, strict YAML.

Reading a recipe runs no code, and imports neither PyTorch nor NumPy.
It may import optimizers and all below them, for their names and options only.
"""
