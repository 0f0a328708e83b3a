"""Which published files are to be given together, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import published_files
from tinygptv.export.bundle import export_bundle
from tinygptv.export.cli import main as export_main
from tinygptv.export.documents import Config
from tinygptv.export.sources import open_model, problem_with
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.errors import ExportError

OURS = {name: f"some {name}" for name in ("phi", "vision", "qformer", "checkpoint")} | {"stage": 4}
NONE = dict.fromkeys((*OURS, "model", "tower", "architecture"))
PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({}, "--checkpoint, --phi, --qformer, --stage, --vision: missing; TinyGPT-V needs all of its files and --stage, "),
    ({**OURS, "stage": None}, "--stage: missing"),
    ({**OURS, "vision": None}, "--vision: missing"),
    ({**OURS, "tower": "t"}, "--tower needs --model"),
    ({"tower": "t"}, "--tower needs --model"),
    ({**OURS, "model": "m"}, "--checkpoint, --qformer, --stage, --vision: not needed with --model; leave it out"),
    ({"model": "m", "architecture": "a"}, "--architecture: not needed with --model"),
    ({"model": "m", "stage": 4}, "--stage: not needed with --model"),
    ({**OURS, "stage": 5}, "stage is 5; expected one of 1, 2, 3, 4"),
    ({**OURS, "stage": "4"}, "stage is '4'; expected one of 1, 2, 3, 4"),
]


@pytest.mark.parametrize(("given", "problem"), PROBLEMS)
def test_files_that_do_not_make_a_model(given: dict[str, Any], problem: str, tmp_path: Path) -> None:
    for sources in (given, NONE | given):
        found = problem_with(**sources)
        assert found is not None and found.startswith(problem)
        with pytest.raises(ExportError) as caught:
            open_model(**sources)
        assert str(caught.value) == found
        with pytest.raises((ExportError, ValueError)):
            export_bundle(output=tmp_path / "bundle", **sources)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [OURS, OURS | {"architecture": "a"}, {"model": "m"}, {"model": "m", "phi": "p"}])
def test_files_that_do(given: dict[str, Any]) -> None:
    assert problem_with(**given) is None
    assert problem_with(**NONE | given) is None


def test_a_name_that_is_none() -> None:
    with pytest.raises(TypeError, match="unknown source files: colour"):
        problem_with(**OURS, colour="red")


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        export_main(arguments)
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: tinygptv-export")
    return captured.err.splitlines()[-1]


@pytest.mark.parametrize("command", [[], ["verify"]])
@pytest.mark.parametrize("option", ["--phi", "--vision", "--qformer", "--checkpoint"])
def test_a_missing_option_is_wrong_usage(
    command: list[str], option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of ``verify``, which needs no ``--stage``: the bundle tells it."""
    files = published_files(3)
    del files[option]
    if command:
        del files["--stage"]
    where = [str(tmp_path / "bundle")] if command else ["-o", str(tmp_path / "bundle")]
    message = usage_error(capsys, *command, *where, *(text for pair in files.items() for text in pair))
    assert f"error: {option}: missing; TinyGPT-V needs" in message
    assert list(tmp_path.iterdir()) == []


def test_the_stage_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = published_files(3)
    del files["--stage"]
    arguments = [text for pair in files.items() for text in pair]
    assert "error: --stage: missing" in usage_error(capsys, *arguments, "-o", str(tmp_path / "bundle"))


@pytest.mark.parametrize("command", [["-o", "bundle"], ["verify", "bundle"]])
def test_an_option_that_is_not_needed_is_wrong_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = usage_error(capsys, *command, "--model", "Mipha-3B", "--vision", "eva_vit_g.pth")
    assert "error: --vision: not needed with --model; leave it out" in message


@pytest.mark.parametrize("option", ["--group-size", "--block-size"])
def test_the_size_of_groups(option: str, tmp_path: Path) -> None:
    """``--block-size`` is what it was called."""
    arguments = [text for pair in published_files(3).items() for text in pair]
    more = (option, "16", "--calibration", "none", "-o", str(tmp_path / "bundle"))
    assert export_main([*arguments, *more]) == 0
    decoder = read_manifest(tmp_path / "bundle").graphs["decoder"]
    assert {how.block_size for how in decoder.quantization} == {16}


# Fields of a configuration


@pytest.mark.parametrize("value", [1, True, 1.0, "1", None, [], {}])
def test_a_field_is_what_is_expected_or_named(value: Any) -> None:
    """1, True and 1.0 are equal in Python, and not the same in a configuration."""
    allowed: tuple[object, ...] = (1, True, 1.0, "1", None, [], {})
    config = Config("config.json", {} if value is None else {"field": value})
    config.expect("field", value)
    with pytest.raises(ExportError) as caught:
        config.expect("field", *(other for other in allowed if type(other) is not type(value)))
    message = str(caught.value)
    assert message.startswith(f"config.json: field is {value!r}, which is not supported; expected ")
    assert ("absent" in message) == (value is not None)


def test_fields_of_a_kind() -> None:
    config = Config("here", {"whole": 3, "half": 0.5, "word": "yes", "part": {"whole": 4}}, {"whole": 1, "spare": 2})
    assert (config.integer("whole"), config.integer("spare"), config.number("half")) == (3, 2, 0.5)
    assert (config.text("word"), config.part("part", {"spare": 5}).integer("spare")) == ("yes", 5)
    for read, name in (
        (config.integer, "half"),
        (config.integer, "word"),
        (config.number, "word"),
        (config.text, "whole"),
        (config.part, "whole"),
        (config.part, "absent"),
        (config.part("part").integer, "absent"),
    ):
        with pytest.raises(ExportError, match=rf"^here.*: {name} is .*; expected "):
            read(name)
