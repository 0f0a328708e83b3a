"""The subcommands of ``tinygptv``, one module each, and code that they share; ``cli.py`` combines them."""
