"""Readers of records and results: terminal, TensorBoard, figures, code."""
