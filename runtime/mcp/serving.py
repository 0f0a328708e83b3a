"""The tools and their server over stdio, on the official SDK, which uses stdout for the protocol."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import anyio
from mcp.server.mcpserver import Context, ListRoots, MCPServer, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ListRootsResult, ToolAnnotations
from pydantic import Field

from .. import boxes
from ..answer import Answer
from ..bundle.manifest import Manifest
from ..errors import TinyGPTVError
from ..model import TinyGPTV
from ..pointing import words_of
from ..vision.encoded import EncodedImage
from .folders import Folders

INSTRUCTIONS = (
    "A small vision model on this machine looks at picture files; nothing leaves the machine. Its answers are short "
    "and may be wrong: ask one plain question at a time."
)
_LOCATING = ("[detection]", "[refer]")
"""Task tags that ask for boxes, in order of preference: all things of a kind, or one thing."""

PicturePath = Annotated[str, Field(description="picture file: an absolute path, or one relative to an allowed folder")]
Question = Annotated[str, Field(description="one plain question about the picture")]
Thing = Annotated[str, Field(description='what to look for, such as "dog"')]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the upright picture; right and bottom are the first column and row outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Region:
    """An object that was found, and its boxes."""

    phrase: str | None
    boxes: list[Box]


@dataclass(frozen=True)
class Located:
    """The size of a picture, and the regions found in it; none if nothing was found."""

    width: int
    height: int
    regions: list[Region]


async def _roots(context: Context) -> ListRoots | None:
    """Request the roots of a client that supports them."""
    capabilities = context.client_capabilities
    return ListRoots() if capabilities is not None and capabilities.roots is not None else None


Roots = Annotated[ListRootsResult | None, Resolve(_roots)]


def serve(model: TinyGPTV, folders: Folders) -> None:
    """Serve until the client closes stdin; Ctrl-C ends the process, which would else wait for a line from stdin."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    anyio.run(_server(model, folders).run_stdio_async)


def _server(model: TinyGPTV, folders: Folders) -> MCPServer:
    server: MCPServer = MCPServer("tinygptv", instructions=INSTRUCTIONS, log_level="ERROR")
    tools = _Tools(model, folders)
    read_only = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
    offered: list[Callable[..., Awaitable[str | Located]]] = [tools.describe, tools.ask]
    if _locating_tag(model.manifest):
        offered.append(tools.locate)
    for tool in offered:
        server.add_tool(tool, annotations=read_only)
    return server


class _Tools:
    """The tools. They answer one question at a time: two at once would compete for the same cores."""

    def __init__(self, model: TinyGPTV, folders: Folders) -> None:
        self._model, self._folders = model, folders
        self._turn = anyio.Lock()

    async def describe(self, path: PicturePath, roots: Roots) -> str:
        """Describe a picture in a sentence."""
        _, answer = await self._asked(path, self._model.manifest.caption_question, roots)
        return words_of(self._model.manifest, answer.text).strip()

    async def ask(self, path: PicturePath, question: Question, roots: Roots) -> str:
        """Ask a question about a picture."""
        _, answer = await self._asked(path, question, roots)
        return words_of(self._model.manifest, answer.text).strip() or answer.text.strip()

    async def locate(self, path: PicturePath, thing: Thing, roots: Roots) -> Located:
        """Find things of a kind in a picture: their boxes, in pixels."""
        image, answer = await self._asked(path, f"{_locating_tag(self._model.manifest)} {thing}", roots)
        return Located(image.width, image.height, [_region(region) for region in answer.regions])

    async def _asked(self, path: str, question: str, roots: ListRootsResult | None) -> tuple[EncodedImage, Answer]:
        try:
            place = self._folders.find(path, None if roots is None else [str(root.uri) for root in roots.roots])
            async with self._turn:
                image = await anyio.to_thread.run_sync(self._model.encode_image, place)
                async with aclosing(self._model.astream(image, question)) as stream:
                    async for _ in stream:
                        pass
                return image, stream.answer
        except TinyGPTVError as error:
            raise ToolError(str(error)) from error


def _locating_tag(manifest: Manifest) -> str | None:
    known = (tag for tag in _LOCATING if tag in manifest.tasks)
    return next(known, None) if manifest.boxes else None


def _region(region: boxes.Region) -> Region:
    return Region(region.phrase, [Box(*box) for box in region.boxes])
