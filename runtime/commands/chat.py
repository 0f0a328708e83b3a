"""``tinygptv chat``: a conversation about an image, typed at a terminal or read from a pipe."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..answer import AnswerStream
from ..cancel import Cancellation
from ..chat import Chat
from ..errors import ArgumentError, TinyGPTVError, reason_of
from ..model import TinyGPTV
from ..system.files import write_atomically
from ..vision.image import ImageSource
from .completion import install
from .dropped import dropped_in, paths_in
from .options import (
    EXIT_ERROR,
    add_answer_options,
    add_model_options,
    add_sampling_options,
    answer_options,
    examples,
    load,
)
from .pictures import STDIN, add_clipboard, from_clipboard, read_sources
from .report import document
from .terminal import complain, interruptible, is_terminal, remark, status

if TYPE_CHECKING:
    from .options import Commands

HELP = """\
/image PATH ...  start again with another image, or several; a file that is dropped here does the same
/paste           start again with the image on the clipboard
/reset           start again with the same image
/save FILE       save the conversation, as JSON if FILE ends in .json
/quit            leave, as Ctrl-D does; Ctrl-C cancels an answer
Anything else is a question. Tab completes commands, task tags and paths."""
COMMANDS = ("/image", "/paste", "/reset", "/save", "/help", "/quit")
EXAMPLES = examples(
    "tinygptv chat photo.jpg",
    "tinygptv chat --bundle ~/models/tinygptv",
    "tinygptv chat photo.jpg --json < questions.txt > answers.jsonl",
)


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "chat",
        help="talk about an image",
        description="Talk about an image, several, or none. Type questions, or pipe them in, one a line.",
        epilog=f"{EXAMPLES}\n\nwithin the chat:\n{HELP}",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures to talk about: PNG, JPEG, WebP, GIF ...")
    add_clipboard(parser)
    add_answer_options(parser)
    add_sampling_options(parser)
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object for each answer, one per line")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Chat until the input ends."""
    if STDIN in options.images:
        options.parser.error("- is no image here: questions are read from stdin")
    typed = is_terminal(sys.stdin)
    if not typed and hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # a question that is not UTF-8 is refused by itself
    sources = read_sources(options.images, options.clipboard)
    with load(options, background=True) as model:
        if typed:
            install(COMMANDS, model.manifest.tasks)
        conversation = _Conversation(model, options, typed)
        conversation.begin(sources)
        if typed:
            remark("/help lists commands; Ctrl-C cancels an answer, Ctrl-D leaves")
        while (line := conversation.read()) is not None:
            try:
                if not conversation.obey(line):
                    break
            except KeyboardInterrupt:
                if not typed:
                    raise
                print(file=sys.stderr)
    return EXIT_ERROR if conversation.failed and not typed else 0


class _Conversation:
    """A chat, and the commands that it understands."""

    def __init__(self, model: TinyGPTV, options: argparse.Namespace, typed: bool) -> None:
        self._model = model
        self._options = options
        self._typed = typed
        self._sources: Sequence[ImageSource] = ()
        self._chat: Chat
        self._saved: set[Path] = set()
        self.failed = False
        """Whether any line failed."""

    def begin(self, sources: Sequence[ImageSource]) -> None:
        """Begin a chat about these images; if one cannot be read, the previous chat goes on."""
        cancellation = Cancellation()
        start = partial(self._model.chat, sources, template=self._options.template, cancellation=cancellation)
        with status("looking at the image ..."):
            self._chat = interruptible(start, cancellation.cancel)
        self._sources = sources

    def read(self) -> str | None:
        """Read the next line; None at the end of the input."""
        if not self._typed:
            return sys.stdin.readline() or None if sys.stdin else None
        while True:
            try:
                if is_terminal(sys.stdout):
                    return input("> ")
                print("> ", end="", file=sys.stderr, flush=True)
                return input()
            except KeyboardInterrupt:
                print(file=sys.stderr)
            except EOFError:
                print(file=sys.stderr)
                return None

    def obey(self, line: str) -> bool:
        """Run a command or answer a question; returns whether to continue."""
        line = line.strip()
        name, _, rest = line.partition(" ")
        actions: tuple[Callable[[str], None], ...] = (self._image, self._paste, self._reset, self._save, self._help)
        commands = dict(zip(COMMANDS, actions, strict=False))
        if name == COMMANDS[-1]:
            return False
        try:
            if name in commands:
                commands[name](rest.strip())
            elif paths := dropped_in(line):
                self._look_at(paths)
            elif line.startswith("/"):
                raise ArgumentError(f"there is no command {name}; /help lists them, /image PATH shows a picture")
            elif line:
                self._answer(line)
        except TinyGPTVError as error:
            complain(error)
            self.failed = True
        return True

    def _answer(self, question: str) -> None:
        options = self._options
        stream = self._chat.stream(question, options=answer_options(options))
        try:
            interruptible(partial(self._write, stream), stream.cancel)
        except KeyboardInterrupt:
            if not self._typed:
                raise
        answer = stream.answer
        if options.json:
            print(json.dumps({"question": question, **document(answer)}), flush=True)
        else:
            print(flush=True)
        if answer.truncated_turns:
            turns = "the oldest turn" if answer.truncated_turns == 1 else f"the {answer.truncated_turns} oldest turns"
            remark(f"{turns} no longer fit into the context and were left out")
        if answer.finish_reason == "cancelled":
            remark("cancelled")

    def _write(self, stream: AnswerStream) -> None:
        with status("..."):
            first = next(stream, "")
        if self._options.json:
            _ = stream.answer
            return
        print(first, end="", flush=True)
        for piece in stream:
            print(piece, end="", flush=True)

    def _image(self, rest: str) -> None:
        names = paths_in(rest)
        if not names or STDIN in names:
            raise ArgumentError("expected /image PATH")
        self._look_at(names)

    def _paste(self, rest: str) -> None:
        self._look_at(from_clipboard())

    def _look_at(self, sources: Sequence[ImageSource]) -> None:
        self.begin(sources)
        names = [str(source) if isinstance(source, str) else "the clipboard's image" for source in sources]
        remark(f"new conversation about {' and '.join(names)}")

    def _reset(self, rest: str) -> None:
        self._chat.reset()
        remark("new conversation" + (" about the same image" if self._chat.images else ""))

    def _help(self, rest: str) -> None:
        print(HELP, file=sys.stderr)

    def _save(self, rest: str) -> None:
        if not rest:
            raise ArgumentError("expected /save FILE")
        names = paths_in(rest)  # there is one file: blanks that are not quoted are part of its name
        path = Path(names[0] if len(names) == 1 else os.path.expanduser(rest)).absolute()
        if path.exists() and path not in self._saved:
            raise ArgumentError(f"{path} exists already; expected a new file")
        turns = self._chat.turns
        if path.suffix.lower() == ".json":
            images = [source for source in self._sources if isinstance(source, str)]
            said = [{"question": question, "answer": answer} for question, answer in turns]
            text = json.dumps({"model": self._model.manifest.name, "images": images, "turns": said}, indent=1) + "\n"
        else:
            text = "".join(f"> {question}\n{answer}\n\n" for question, answer in turns)
        try:
            write_atomically(path, lambda file: file.write(text.encode()))
        except OSError as error:
            raise ArgumentError(f"{path} cannot be written: {reason_of(error)}") from error
        self._saved.add(path)
        remark(f"saved in {path}")
