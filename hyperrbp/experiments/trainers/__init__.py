"""Trainers: one file for each kind of network; each can be advanced, saved and resumed."""
