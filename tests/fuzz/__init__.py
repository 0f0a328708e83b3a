"""Spoilt inputs for everything that reads what others made; see ``python -m tests.fuzz --help``."""
