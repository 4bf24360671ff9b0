"""Typed models of all that is written as JSON: records, results, reports.

Each document has a ``kind`` and a ``schema_version``, by which it is read again.
"""
