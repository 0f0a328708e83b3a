"""``tinygptv mcp``: tools for agents and desktop assistants, over the Model Context Protocol."""
