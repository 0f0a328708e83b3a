"""Every write fails once, at each system call in turn; see ``python -m tests.faults --help``."""
