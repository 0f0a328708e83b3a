"""``tinygptv mcp``: tools for agents and desktop assistants, over stdio."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_model_options, examples, load, require

if TYPE_CHECKING:
    from .options import Commands

EXAMPLES = examples("tinygptv mcp --allow ~/Pictures --bundle ~/models/tinygptv")


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "mcp",
        help="tools to look at pictures, for agents and desktop assistants (Model Context Protocol)",
        description="Offer tools to describe pictures on this machine, ask about them and locate things in them, over "
        "the Model Context Protocol. A client starts this command and talks to it on stdin and stdout; docs/mcp.md has "
        "what to put into its configuration.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--allow",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="a folder whose pictures may be read, with those below it (repeatable); nothing else is read. If "
        "the client has folders open (roots), a picture must be in one of them too; without --allow, in one of them",
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until the client disconnects."""
    require("mcp", "mcp")
    from ..mcp.folders import Folders
    from ..mcp.serving import serve

    folders = Folders(folder.expanduser() for folder in options.allow)
    with load(options, background=True) as model:
        serve(model, folders)
    return 0
