"""The ``tinygptv`` command's subcommands, one module each, and what they share; ``cli.py`` puts them together."""
