"""A bundle served to other programs on this machine, in the form of OpenAI's chat completions: ``tinygptv serve``."""
