"""The command line: one file a verb, options and exit codes apart.

A verb parses, calls the library, prints, and sets the exit code.
It may import everything; nothing but ``__main__`` imports it.
"""
