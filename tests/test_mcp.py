"""``tinygptv mcp``: the official SDK's client talks to the command over stdio, as agents and desktop assistants do."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import QUESTION, bundle_with, plain_environment
from tinygptv.runtime import ArgumentError, cli
from tinygptv.runtime.cli import main
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.mcp.folders import Folders

pytest.importorskip("mcp", reason="needs the extra mcp")
import anyio
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, ListRootsResult, Root

IMAGES = Path(__file__).parent / "images"
COMMAND = ["-m", "tinygptv.runtime.cli", "mcp"]
BOX = {"left": 16, "top": 5, "right": 39, "bottom": 25}
CHATTY = """
import os, sys
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.cli import main
encode = TinyGPTV.encode_image
def chatty(*arguments, **named):
    print("from Python", flush=True)
    os.write(1, b"from a library\\n")
    return encode(*arguments, **named)
TinyGPTV.encode_image = chatty
sys.exit(main(sys.argv[1:]))
"""
SLOWLY = """
import sys, time
from tinygptv.runtime.cli import main
from tinygptv.runtime.language.decoder import DecoderState
run = DecoderState.run
def slowly(*arguments, **named):
    with open("steps", "a") as file:
        file.write("x")
    time.sleep(0.05)
    return run(*arguments, **named)
DecoderState.run = slowly
sys.exit(main(sys.argv[1:]))
"""
posix_links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "meine Bilder é"
    shutil.copytree(IMAGES, folder)
    return folder


def talk(
    home: Path,
    arguments: list[str],
    conversation: Callable[[Client], Awaitable[None]],
    roots: list[str] | None = None,
    mode: str = "auto",
    command: Sequence[str] = COMMAND,
) -> None:
    """Run the command as a client does, and let it speak."""

    async def opened(context: object) -> ListRootsResult:
        return ListRootsResult(roots=[Root(uri=root) for root in roots or ()])

    async def run() -> None:
        server = StdioServerParameters(
            command=sys.executable, args=[*command, *arguments], env=plain_environment(home), cwd=home
        )
        callback = {} if roots is None else {"list_roots_callback": opened}
        async with Client(server, mode=mode, **callback) as client:
            with anyio.fail_after(60):
                await conversation(client)

    anyio.run(run)


def text(result: CallToolResult) -> str:
    (content,) = result.content
    return content.text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_tools(mode: str, pictures: Path, tmp_path: Path) -> None:
    """With clients of today and of before."""

    async def conversation(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["describe", "ask", "locate"]
        for tool in tools.values():
            assert tool.annotations.read_only_hint and "roots" not in tool.input_schema["properties"]
        described = await client.call_tool("describe", {"path": str(pictures / "teal_circle.png")})
        assert (described.is_error, text(described)) == (False, "a teal circle")
        asked = {"path": "red_triangle.png", "question": "what shape is in the image?"}  # relative to the folder
        assert text(await client.call_tool("ask", asked)) == "triangle"
        found = await client.call_tool(
            "locate", {"path": (pictures / "red_triangle.png").as_uri(), "thing": "triangle"}
        )
        assert found.structured_content == {
            "width": 64,
            "height": 64,
            "regions": [{"phrase": "red triangle", "boxes": [BOX]}],
        }
        plain = await client.call_tool("ask", {"path": "red_triangle.png", "question": "[detection] triangle"})
        assert text(plain) == "red triangle"  # words, without the model's own form of boxes

    talk(tmp_path, ["--allow", str(pictures)], conversation, mode=mode)


def test_what_goes_wrong_is_told(pictures: Path, tmp_path: Path) -> None:
    """In words that the model which called can act on; the next call is answered."""
    (pictures / "letter.png").write_text("Dear reader")

    async def conversation(client: Client) -> None:
        for arguments, said in (
            ({"path": "nowhere.png"}, "does not exist"),
            ({"path": "letter.png"}, "is text, not a picture"),
            ({"path": "."}, "is a folder"),
            ({}, "path"),
        ):
            failed = await client.call_tool("describe", arguments)
            assert failed.is_error and said in text(failed)
        failed = await client.call_tool("ask", {"path": "red_triangle.png", "question": " " * 3})
        assert failed.is_error and "expected some text" in text(failed)
        assert text(await client.call_tool("describe", {"path": "red_triangle.png"})) == "a red triangle"

    talk(tmp_path, ["--allow", str(pictures)], conversation)


def test_a_family_without_boxes_locates_nothing(pictures: Path, tmp_path: Path) -> None:
    bundle = bundle_with(DEMO_BUNDLE, tmp_path / "other", boxes=False)

    async def conversation(client: Client) -> None:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["describe", "ask"]

    talk(tmp_path, ["--allow", str(pictures), "--bundle", str(bundle)], conversation)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_roots(mode: str, pictures: Path, tmp_path: Path) -> None:
    """What the client opened is all that may be read, or narrows what the user allowed."""
    inner = pictures / "inner"
    inner.mkdir()
    shutil.copy(IMAGES / "teal_circle.png", inner / "a.png")
    outer = str(pictures / "red_triangle.png")

    async def conversation(client: Client) -> None:
        assert text(await client.call_tool("describe", {"path": str(inner / "a.png")})) == "a teal circle"
        refused = await client.call_tool("describe", {"path": outer})
        assert refused.is_error and "is outside of the folders that may be read" in text(refused)

    for allowed in ([], ["--allow", str(pictures)]):
        talk(tmp_path, allowed, conversation, [inner.as_uri()], mode)


def test_nothing_may_be_read_unless_it_is_allowed(pictures: Path, tmp_path: Path) -> None:
    async def conversation(client: Client) -> None:
        refused = await client.call_tool("describe", {"path": str(pictures / "red_triangle.png")})
        assert refused.is_error and "tinygptv mcp --allow FOLDER" in text(refused)

    talk(tmp_path, [], conversation)


def test_a_call_that_is_cancelled(pictures: Path, tmp_path: Path, golden_bundle: Callable[[int, str], Path]) -> None:
    """Is computed no further."""
    steps = tmp_path / "steps"

    async def conversation(client: Client) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "ask", {"path": "red_triangle.png", "question": QUESTION})
                while not steps.exists() or steps.stat().st_size < 4:
                    await anyio.sleep(0.01)
                scope.cancel()
        await anyio.sleep(0.5)
        done = steps.stat().st_size
        await anyio.sleep(0.3)
        assert steps.stat().st_size == done < 20  # of some 150

    bundle = ["--bundle", str(golden_bundle(3, "fp32"))]
    talk(tmp_path, ["--allow", str(pictures), *bundle], conversation, command=["-c", SLOWLY, "mcp"])


def test_stdout_is_the_protocol_s(pictures: Path, tmp_path: Path) -> None:
    """Whatever else prints, Python's or a library's, goes to stderr; at the end of stdin the command ends."""
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    call = {"name": "describe", "arguments": {"path": "red_triangle.png"}}
    messages: list[Mapping[str, Any]] = [
        {"id": 1, "method": "initialize", "params": client},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": call},
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", CHATTY, "mcp", "--allow", str(pictures)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=plain_environment(tmp_path),
    )
    with process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        for message in messages:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        process.stdin.flush()
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.stdin.close()
        assert process.stdout.read() == b""
        said = process.stderr.read()
        assert process.wait(60) == 0
    assert first["id"] == 1 and second["result"]["content"][0]["text"] == "a red triangle"
    assert b"from Python" in said and b"from a library" in said


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_it(pictures: Path, tmp_path: Path) -> None:
    """While it waits for a line that nobody sends."""
    process = subprocess.Popen(
        [sys.executable, *COMMAND, "--allow", str(pictures)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=plain_environment(tmp_path),
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == -signal.SIGINT
        finally:
            process.kill()


def test_the_configuration_of_the_docs_page() -> None:
    """Is a command of this program, with the options that it has."""
    page = (Path(__file__).parents[1] / "docs" / "mcp.md").read_text(encoding="utf-8")
    (server,) = json.loads(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0])["mcpServers"].values()
    options = cli._parser().parse_args(server["args"])
    assert Path(server["command"]).name == "tinygptv" and options.command == "mcp"
    assert options.allow and options.bundle


def test_wrong_folders_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp", "--allow", str(tmp_path / "nowhere")]) == 1
    assert f"--allow {tmp_path / 'nowhere'} is not a folder" in capsys.readouterr().err


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tinygptv.runtime.commands.options.find_spec", lambda name: None)
    assert main(["mcp"]) == 1
    assert '[mcp]"' in capsys.readouterr().err


# The allow-list


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "/etc/passwd", "~/secret.png", "", "\0"])
def test_paths_that_lead_outside(path: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(IMAGES / "red_triangle.png", tmp_path / "secret.png")
    folders = Folders([pictures])
    if path == "":
        assert folders.find(path) == pictures.resolve()  # which is no picture
        return
    with pytest.raises(ArgumentError, match="may be read"):
        folders.find(path)
    with pytest.raises(ArgumentError, match="may be read"):
        folders.find((tmp_path / "secret.png").as_uri())


@posix_links
def test_links_count_as_what_they_lead_to(pictures: Path, tmp_path: Path) -> None:
    secret = Path(shutil.copy(IMAGES / "red_triangle.png", tmp_path / "secret.png"))
    (pictures / "link.png").symlink_to(secret)
    (pictures / "up").symlink_to(tmp_path)
    (tmp_path / "allowed").symlink_to(pictures)
    folders = Folders([tmp_path / "allowed"])
    for path in ("link.png", "up/secret.png", str(pictures / "up" / "secret.png")):
        with pytest.raises(ArgumentError, match="outside of the folders"):
            folders.find(path)
    for path in ("red_triangle.png", str(tmp_path / "allowed" / "red_triangle.png")):
        assert folders.find(path) == (pictures / "red_triangle.png").resolve()


def test_a_folder_with_a_like_name_is_outside(pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / f"{pictures.name}2"
    shutil.copytree(IMAGES, other)
    with pytest.raises(ArgumentError, match="outside of the folders"):
        Folders([pictures]).find(str(other / "red_triangle.png"))


def test_several_folders(pictures: Path, tmp_path: Path) -> None:
    """A relative path is looked for in each."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(IMAGES / "red_triangle.png", other / "only here.png")
    folders = Folders([pictures, other])
    assert folders.find("only here.png") == (other / "only here.png").resolve()
    assert folders.find("teal_circle.png") == (pictures / "teal_circle.png").resolve()
    assert folders.find("no file.png").name == "no file.png"


def test_roots_of_other_machines_open_nothing(pictures: Path) -> None:
    for root in ("https://example.org/pictures", f"file://elsewhere{os.fspath(pictures)}"):
        with pytest.raises(ArgumentError, match="may be read"):
            Folders([pictures]).find("red_triangle.png", [root])
    assert Folders([pictures]).find("red_triangle.png", []).is_file()  # none offered
