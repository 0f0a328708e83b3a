"""What an export writes, and that it is whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from conftest import GOLDEN_STAGES, export_arguments, heed_interrupts, plain_environment, published_files
from file_contents import contents
from tinygptv.export import bundle as bundle_module
from tinygptv.export.bundle import export_bundle
from tinygptv.export.calibration import PACKAGED, find_calibration_set
from tinygptv.export.cli import main as export_main
from tinygptv.export.parts.phi import LM_HEAD_PARTS
from tinygptv.runtime.bundle.manifest import Quantization, read_manifest
from tinygptv.runtime.errors import ExportError
from variants import Published

Bundle = Callable[[int, str], Path]
PRECISIONS = ("int8", "fp32")
PAGE = 4096
QUICKLY = ("--overwrite", "--calibration", "none")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def keywords(files: dict[str, str]) -> dict[str, Any]:
    """The options as arguments of export_bundle."""
    return {name.removeprefix("--"): value for name, value in files.items()} | {"stage": int(files["--stage"])}


# What is written


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits")
@pytest.mark.parametrize("how", [QUICKLY, ("--precision", "int4")], ids=["embeddings", "rounded weights"])
def test_a_disk_that_fills_up(how: tuple[str, ...], tmp_path: Path) -> None:
    """A limit on the size of files stands for it, and hits the first one."""
    import resource

    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "bundle"
    done = subprocess.run(
        [sys.executable, "-m", "tinygptv.export", *export_arguments(published_files(3), target, *how)],
        capture_output=True,
        text=True,
        env=plain_environment(tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)),
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"tinygptv-export: {target} was not written: ")
    assert os.strerror(errno.EFBIG) in done.stderr.splitlines()[-1]
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_manifest_tells_the_truth_about_files(stage: int, precision: str, golden_bundle: Bundle) -> None:
    folder = golden_bundle(stage, precision)
    manifest = read_manifest(folder)
    assert {record.name for record in manifest.files} == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert len(manifest.files) == 8
    for record in manifest.files:
        assert record.size == (folder / record.name).stat().st_size
        assert record.sha256 == sha256(folder / record.name)
    assert manifest.stage == stage
    assert manifest.name == folder.name
    eyes = "int8" if precision == "int4" else precision
    assert {name: graph.precision for name, graph in manifest.graphs.items()} == {
        "vision_encoder": eyes,
        "projector": eyes,
        "decoder": precision,
    }


@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_manifest_tells_the_truth_about_sources(stage: int, golden_bundle: Bundle) -> None:
    files = published_files(stage)
    expected = {
        (option.removeprefix("--"), Path(files[option]).name): Path(files[option])
        for option in ("--vision", "--qformer", "--checkpoint")
    }
    expected |= {("phi", path.name): path for path in Path(files["--phi"]).iterdir()}
    expected["architecture", "architecture.json"] = Path(files["--architecture"])
    expected |= {("calibration", path.name): path for path in find_calibration_set(PACKAGED).files}
    sources = read_manifest(golden_bundle(stage, "int8")).sources
    assert {(source.role, source.name) for source in sources} == set(expected)
    assert len(sources) == len(expected)
    for source in sources:
        path = expected[source.role, source.name]
        assert source.size == path.stat().st_size
        assert source.sha256 == sha256(path)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("int8", "float16"), ("int4", "float16"), ("fp32", "float32"), ("int8 cache", "int8")]
)
def test_the_cache_is_of_the_dtype_that_is_promised(precision: str, dtype: str, golden_bundle: Bundle) -> None:
    folder = golden_bundle(3, precision)
    decoder = read_manifest(folder).graphs["decoder"]
    specs = [spec for spec in (*decoder.inputs, *decoder.outputs) if "{i}" in spec.name]
    assert len(specs) == 4
    assert {spec.dtype for spec in specs} == {dtype}
    graph = onnx.load(folder / decoder.file, load_external_data=False).graph
    caches = [value for value in (*graph.input, *graph.output) if value.name.startswith(("past_", "present."))]
    assert len(caches) == 8
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    assert {value.type.tensor_type.elem_type for value in caches} == {code}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_external_data_can_be_mapped(precision: str, golden_bundle: Bundle) -> None:
    folder = golden_bundle(4, precision)
    for name in ("vision_encoder", "projector", "decoder"):
        model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        size = (folder / f"{name}.onnx.data").stat().st_size
        end = 0
        external = [tensor for tensor in model.graph.initializer if tensor.external_data]
        assert len(external) > 10
        for tensor in external:
            fields = {entry.key: entry.value for entry in tensor.external_data}
            assert fields["location"] == f"{name}.onnx.data"
            offset, length = int(fields["offset"]), int(fields["length"])
            assert offset % PAGE == 0
            assert offset >= end, "tensors overlap"
            assert length == np.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            end = offset + length
        assert end == size


@pytest.mark.parametrize(("precision", "dtype"), [("int8", np.float16), ("int4", np.float16), ("fp32", np.float32)])
def test_embedding_table(precision: str, dtype: type, golden_bundle: Bundle) -> None:
    table = np.load(golden_bundle(4, precision) / "embed_tokens.npy")
    assert table.dtype == dtype
    expected = Published.golden(4).phi["model.embed_tokens.weight"].numpy()
    assert np.array_equal(table, expected.astype(dtype))


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of loops' bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g)


def stored(graph: onnx.GraphProto) -> Counter[Quantization]:
    """How a graph's linear layers are stored, as its nodes have it."""
    found: Counter[Quantization] = Counter()
    for node in nodes_of(graph):
        if node.op_type in ("MatMulNBits", "MatMulIntegerToFloat"):
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            bits, size = numbers.get("bits", 8), numbers.get("block_size")
            found[Quantization(bits=bits, block_size=size, symmetric=True, operator=node.op_type, layers=1)] += 1
    return found


@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_precision_is_that_of_the_linear_layers(stage: int, golden_bundle: Bundle) -> None:
    for precision in PRECISIONS:
        folder = golden_bundle(stage, precision)
        manifest = read_manifest(folder)
        for name, layers in (
            ("vision_encoder", 6 * manifest.parts["eva_clip"]["num_hidden_layers"]),
            ("projector", None),
            ("decoder", 6 * manifest.contract.layers + LM_HEAD_PARTS),
        ):
            graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
            floats = sum(node.op_type == "MatMul" and ".rotated." not in node.name for node in nodes_of(graph))
            found, told = stored(graph), manifest.graphs[name].quantization
            assert found == {replace(how, layers=1): how.layers for how in told}
            assert len(told) == len(found)
            assert (floats == 0, found.total() == 0) == (precision != "fp32", precision == "fp32")
            assert layers in (None, floats + found.total())
            bits = {how.bits for how in found}
            assert bits == {"fp32": set(), "int8": {8}, "int4": {4, 8} if name == "decoder" else {8}}[precision]


def test_two_exports_are_the_same_bytes(tmp_path: Path, golden_bundle: Bundle) -> None:
    first = golden_bundle(3, "int8")
    second = tmp_path / first.name
    assert export_main(export_arguments(published_files(3), second)) == 0
    assert contents(second) == contents(first)


def test_python_function_is_the_command(tmp_path: Path, golden_bundle: Bundle) -> None:
    first = golden_bundle(3, "int8")
    exported = export_bundle(**keywords(published_files(3)), output=str(tmp_path / first.name))
    assert exported.path == tmp_path / first.name
    assert exported.files == read_manifest(first).files
    assert contents(exported.path) == contents(first)


def test_template_and_group_size(tmp_path: Path) -> None:
    arguments = keywords(published_files(3))
    folder = export_bundle(**arguments, output=tmp_path / "b", template="inst", group_size=16, calibration=None).path
    manifest = read_manifest(folder)
    assert manifest.default_template == "inst"
    for name, graph in manifest.graphs.items():
        assert {how.block_size for how in graph.quantization} == {None if name == "vision_encoder" else 16}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stage", 0),
        ("stage", 5),
        ("stage", "4"),
        ("precision", "int2"),
        ("group_size", 100),
        ("group_size", 0),
        ("template", "vicuna"),
        ("kv_cache", "float16"),
    ],
)
def test_wrong_argument(name: str, value: Any, tmp_path: Path) -> None:
    arguments = {**keywords(published_files(4)), "output": tmp_path / "bundle", name: value}
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        export_bundle(**arguments)
    assert list(tmp_path.iterdir()) == []


# Whole or not at all


class There(NamedTuple):
    """A bundle that is there already."""

    path: Path
    contents: dict[str, bytes]


@pytest.fixture
def there(tmp_path: Path, golden_bundle: Bundle) -> There:
    path = tmp_path / "made here" / "bundle"
    shutil.copytree(golden_bundle(4, "int8"), path)
    return There(path, contents(path))


def assert_untouched(there: There) -> None:
    assert list(there.path.parent.iterdir()) == [there.path]
    assert contents(there.path) == there.contents


def test_existing_bundle_is_kept(there: There, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_main(export_arguments(published_files(3), there.path)) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(there.path) in message
    assert "--overwrite" in message
    assert_untouched(there)


@pytest.mark.parametrize("again", [True, False])
def test_what_a_kill_between_two_renames_left_is_put_back(again: bool, there: There) -> None:
    """Whether or not the same command then finds nothing to do, or fails."""
    retired = there.path.with_name(f".{there.path.name}.replaced")
    there.path.rename(retired)
    files = published_files(4) if again else {**published_files(4), "--phi": str(there.path.parent / "nowhere")}
    assert export_main(export_arguments(files, there.path)) == 1  # it is there, or there are no sources
    assert_untouched(there)
    shutil.copytree(there.path, retired)
    assert export_main(export_arguments(published_files(4), there.path, "--overwrite")) == 0
    assert list(there.path.parent.iterdir()) == [there.path]


def test_overwrite_replaces_a_bundle(there: There, golden_bundle: Bundle) -> None:
    (there.path / "left over").write_text("of the old bundle")
    assert export_main(export_arguments(published_files(3), there.path, "--overwrite")) == 0
    assert list(there.path.parent.iterdir()) == [there.path]
    assert read_manifest(there.path).stage == 3
    made, expected = contents(there.path), contents(golden_bundle(3, "int8"))
    del made["manifest.json"], expected["manifest.json"]
    assert made == expected


def test_interrupt_between_the_two_renames_keeps_the_old_bundle(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    assert export_main(export_arguments(published_files(3), there.path, *QUICKLY)) == 130
    assert_untouched(there)


def test_interrupt_after_the_two_renames_keeps_the_new_bundle(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    assert export_main(export_arguments(published_files(3), there.path, *QUICKLY)) == 130
    assert list(there.path.parent.iterdir()) == [there.path]
    assert read_manifest(there.path).stage == 3


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_overwrite_spares_what_is_no_bundle(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "photos"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
    if kind == "folder":
        (target / "photo.jpg").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert export_main(export_arguments(published_files(3), target, "--overwrite")) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{target} exists and is not a bundle" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_output_in_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_main(export_arguments(published_files(3), tmp_path / "not there" / "bundle")) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{tmp_path / 'not there'}: no such folder" in message


@pytest.mark.parametrize("overwrite", [True, False])
def test_failure_in_the_last_layer_leaves_what_was_there(
    overwrite: bool, there: There, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = Published.golden(3)
    golden.phi["lm_head.bias"][7] = float("inf")
    files = golden.write(tmp_path / "files")
    target = there.path if overwrite else there.path.parent / "another"
    assert export_main(export_arguments(files, target, *QUICKLY)) == 1
    error = capsys.readouterr().err
    assert "decoder layer 2/2" in error, "it failed before the last layer"
    assert "lm_head.bias" in error.splitlines()[-1]
    assert_untouched(there)


def test_too_little_disk(there: There, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Path] = []
    taken = sum(len(content) for content in there.contents.values())
    usage = shutil.disk_usage(there.path)._replace(free=taken // 2)

    def disk_usage(folder: Path) -> Any:
        asked.append(folder)
        return usage

    monkeypatch.setattr(bundle_module.shutil, "disk_usage", disk_usage)
    assert export_main(export_arguments(published_files(4), there.path, "--overwrite")) == 1
    assert asked == [there.path.parent]
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{there.path.parent}: " in message
    assert "MB free" in message
    assert_untouched(there)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_disk_that_is_asked_for_is_enough(
    stage: int, precision: str, golden_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the golden sizes, padding to pages aside."""
    folder = golden_bundle(stage, precision)
    tensors = 0
    for graph in read_manifest(folder).graphs.values():
        tensors += len(onnx.load(folder / graph.file, load_external_data=False).graph.initializer)
    taken = (folder / "embed_tokens.npy").stat().st_size
    taken += sum(path.stat().st_size for path in folder.glob("*.data")) - tensors * PAGE
    usage = shutil.disk_usage(tmp_path)._replace(free=taken)
    monkeypatch.setattr(bundle_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ExportError, match="MB free"):
        export_bundle(**keywords(published_files(stage)), output=tmp_path / "bundle", precision=precision)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_command_leaves_what_was_there(number: signal.Signals, there: There, tmp_path: Path) -> None:
    """The command itself, interrupted as soon as it shows progress."""
    command = Path(sys.executable).with_name("tinygptv-export")
    arguments = export_arguments(published_files(4), there.path, "--overwrite")
    with subprocess.Popen(
        [command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=plain_environment(tmp_path),
        preexec_fn=heed_interrupts,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        error = b""
        while b"vision_encoder" not in error:
            chunk = os.read(process.stderr.fileno(), 4096)
            assert chunk, f"the command ended before it could be interrupted: {error.decode()}"
            error += chunk
        staged = set(there.path.parent.iterdir()) - {there.path}
        process.send_signal(number)
        output, rest = process.communicate(timeout=60)
    assert any(path.suffix == ".partial" for path in staged), "it was not writing yet"
    assert process.returncode == 130
    assert output == b""
    *_, last = (error + rest).decode().splitlines()
    assert last == "tinygptv-export: interrupted; nothing was written"
    assert "Traceback" not in (error + rest).decode()
    assert_untouched(there)
