"""The paper's claims in small: what the bundled checkpoint's scores are worth on rendered benchmarks of known truth.

``python tests/claims.py`` measures them and writes the tables of docs/claims.md.
"""
