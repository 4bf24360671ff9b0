"""The examples: built-in sets, citation networks, the user's own files and code, minibatches.

A module here turns files into tensors, or says in one line what is wrong with them.
It may import runtime.
"""
