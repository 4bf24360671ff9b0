"""Readers of records and results: terminal, TensorBoard, figures, tables, files for people.

They are given what was found, and change nothing of it; nothing here starts a run.
It may import experiments and all below it.
"""
