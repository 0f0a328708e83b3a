"""Weight files with bytes that are not those that were written, and tensors that are no plain numbers."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refusal, open_published
from file_contents import flip
from sibling_layouts import build
from siblings import write
from tinygptv.export.sources import archives
from tinygptv.export.sources.archives import Archive, RecordSums
from tinygptv.export.sources.opening import open_folder, open_torch
from tinygptv.runtime.errors import ExportError
from variants import Published, write_bins

OPTIONS = ("--vision", "--qformer", "--checkpoint")


def data_records(file: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(file) as archive:
        return [info for info in archive.infolist() if "/data/" in info.filename]


def start_of(file: Path, info: zipfile.ZipInfo) -> int:
    with file.open("rb") as opened:
        opened.seek(info.header_offset + 26)
        name, extra = struct.unpack("<2H", opened.read(4))
    return info.header_offset + 30 + name + extra


def zipped_again(file: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """The same archive with other records, and sums that fit them."""
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


# Sums


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("which", [0, -1])
def test_a_flipped_bit_of_a_record(
    option: str, which: int, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    """Found while the sources are hashed, before anything is computed: torch itself reads on."""
    files = golden.write(tmp_path / "files")
    file = Path(files[option])
    info = data_records(file)[which]
    flip(file, start_of(file, info) + info.file_size // 2)
    open_published(files)
    message = refusal(files, begun=True)
    assert f"{file}: the file is damaged: {info.filename} does not match its CRC-32" in message
    assert message.endswith("; download it again")


def test_a_flipped_bit_of_a_shard(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files", write_bins)
    shard = Path(files["--phi"]) / "pytorch_model-00002-of-00002.bin"
    info = data_records(shard)[0]
    flip(shard, start_of(shard, info))
    assert f"{shard}: the file is damaged" in refusal(files, begun=True)


@pytest.mark.parametrize(
    ("family", "layout", "path"),
    [
        ("tinyllava", "recipe", "model/connector/pytorch_model.bin"),
        ("tinyllava", "LoRA recipe .bin", "model/adapter_model.bin"),
        ("bunny", "LoRA", "model/non_lora_trainables.bin"),
    ],
)
def test_a_flipped_bit_of_a_sibling(family: str, layout: str, path: str, tmp_path: Path, refusal: Refusal) -> None:
    files = write(build(family, layout), tmp_path / "files")
    file = tmp_path / "files" / path
    info = data_records(file)[-1]
    flip(file, start_of(file, info) + info.file_size - 1)
    assert f"{file}: the file is damaged: {info.filename} does not match its CRC-32" in refusal(files, begun=True)


def sums_of(file: Path, step: int) -> RecordSums:
    sums, content = RecordSums(Archive(file)), memoryview(file.read_bytes())
    for begin in range(0, len(content), step):
        sums(content[begin : begin + step])
    return sums


@pytest.mark.parametrize("step", [1, 7, 64, 1000, 1 << 20])
def test_sums_of_records_in_pieces(step: int, tmp_path: Path) -> None:
    """However the pieces lie to the records; all that were changed are counted."""
    file = tmp_path / "weights.pth"
    torch.save({f"tensor {i}": torch.arange(3.0 * i) for i in range(5)}, file)
    sums_of(file, step).finish()
    records = [info for info in data_records(file) if info.file_size]
    for info in records[1:3]:
        flip(file, start_of(file, info) + info.file_size - 1)
    with pytest.raises(ExportError, match=rf"damaged: {records[1].filename} and 1 more does not match"):
        sums_of(file, step).finish()


def test_a_file_that_ends_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(100)}, file)
    sums = RecordSums(Archive(file))
    sums(memoryview(file.read_bytes())[:200])
    with pytest.raises(ExportError, match="is damaged"):
        sums.finish()


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="torch always writes sums")
def test_a_file_that_was_written_without_sums(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(100)}, file)
    finally:
        torch.serialization.set_crc32_options(True)
    reader = open_torch(file, "--vision")
    assert reader.sums(file) is None
    assert torch.equal(reader.read("a"), torch.ones(100))


# Lengths


@pytest.mark.parametrize("option", OPTIONS)
def test_half_a_record(option: str, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    """With sums that fit: torch would fill it up from what is behind it."""
    files = golden.write(tmp_path / "files")
    file = Path(files[option])
    records = data_records(file)
    info = max(records[: len(records) // 2], key=lambda info: info.file_size)
    zipped_again(file, lambda name, content: content[: len(content) // 2] if name == info.filename else content)
    message = refusal(files)
    assert (
        f"{file}: not a complete torch file of plain weights ({info.filename} is {info.file_size // 2} bytes" in message
    )
    assert f"expected {info.file_size} bytes); download it again" in message


def test_a_record_that_is_longer(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files")
    zipped_again(Path(files["--vision"]), lambda name, content: content + b"0" * 4 * name.endswith("/data/1"))
    assert "/data/1 is " in refusal(files)


def test_compressed_records(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    """A mapping would show the compressed bytes."""
    files = golden.write(tmp_path / "files")
    zipped_again(Path(files["--vision"]), lambda name, content: content, zipfile.ZIP_DEFLATED)
    message = refusal(files)
    assert files["--vision"] in message
    assert "download it again" in message


def test_records_in_one_place(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files")
    file = Path(files["--vision"])
    content = file.read_bytes()
    first, second = (struct.pack("<L", info.header_offset) for info in data_records(file)[:2])
    directory = content.rindex(b"PK\x01\x02" + b"")
    start = content.index(b"PK\x01\x02")
    assert start < directory
    changed = content[:start] + content[start:].replace(second, first, 1)
    file.write_bytes(changed)
    assert f"{file}: not a complete torch file of plain weights" in refusal(files)


def test_every_kind_of_storage_has_a_size(tmp_path: Path) -> None:
    """Lengths of what torch itself wrote always fit."""
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.cfloat]
    dtypes += [torch.cdouble, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]
    file = tmp_path / "weights.pth"
    tensors = {str(dtype): torch.zeros(6, dtype=dtype) for dtype in dtypes}
    tensors["shared"] = tensors["torch.float32"][2:4]
    torch.save({"model": tensors, "more": [torch.nn.Parameter(torch.ones(2)), torch.ones(2).untyped_storage()]}, file)
    assert len(Archive(file).records) > len(tensors)


def test_nothing_that_a_pickle_names_is_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "code was run"),)

    file = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(3), "b": Code()}, file)
    assert archives.is_archive(file)
    Archive(file)
    assert not (tmp_path / "code was run").exists()


# Files from before torch 1.6


@pytest.mark.parametrize("more", [b"\0", b"x" * 5000])
def test_an_old_file_with_bytes_behind_its_end(
    more: bytes, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    files = golden.write(tmp_path / "files", _use_new_zipfile_serialization=False)
    with Path(files["--vision"]).open("ab") as file:
        file.write(more)
    message = refusal(files)
    assert f"{files['--vision']}: not a complete torch file of plain weights ({len(more)} bytes more than " in message


def test_an_old_file_with_a_storage_of_another_length(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files", _use_new_zipfile_serialization=False)
    file = Path(files["--vision"])
    content, count = file.read_bytes(), golden.vision["blocks.0.mlp.fc1.weight"].numel()
    place = content.rindex(struct.pack("<q", count))
    file.write_bytes(content[:place] + struct.pack("<q", count - 1) + content[place + 8 :])
    assert f"{file}: not a complete torch file of plain weights" in refusal(files)


# safetensors


def tensors_file(folder: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": entry(0, 8), "b": entry(8, 16)}, 15),
        ({"a": entry(0, 8), "b": entry(8, 16)}, 17),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20),
        ({"a": entry(4, 12)}, 12),
        ({"a": entry(0, 8, (3,))}, 8),
        ({"a": entry(0, 8, (2,), "F16")}, 8),
        ({"a": entry(8, 0)}, 8),
        ({"a": entry(0, 8, (2,), "Q8")}, 8),
        ({"a": entry(0, 1 << 60, (1 << 58,))}, 8),
    ],
)
def test_safetensors_whose_offsets_do_not_fit(header: dict[str, Any], size: int, tmp_path: Path) -> None:
    tensors_file(tmp_path, header, bytes(size))
    with pytest.raises(ExportError, match=r"model\.safetensors: not a complete safetensors file"):
        open_folder(tmp_path, "--model")


def test_safetensors_that_are_whole(tmp_path: Path) -> None:
    tensors_file(tmp_path, {"a": entry(0, 8), "b": entry(8, 16)}, bytes(16))
    assert set(open_folder(tmp_path, "--model").shapes) == {"a", "b"}


# Kinds of tensors


def quietly(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return make()


UNUSUAL: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), "a sparse tensor"),
    "meta": (lambda: torch.empty(3, device="meta"), "a tensor on the meta device, without values"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "a quantised tensor"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2)]), "a nested tensor"),
    "negated": (lambda: torch.ones(2, dtype=torch.cfloat).conj().imag, "a view that is not negated yet"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_tensor_that_is_no_plain_one(name: str, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    make, what = UNUSUAL[name]
    golden.vision["blocks.0.norm1.weight"] = quietly(make)
    message = refusal(golden.write(tmp_path / "files"))
    assert f"eva_vit_g.pth: blocks.0.norm1.weight is {what}; expected a plain tensor of floats" in message


def test_float8_is_no_format_of_weights(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    """Such files have scales beside their tensors, or have lost them."""
    key = "model.final_layernorm.weight"
    golden.phi[key] = golden.phi[key].to(torch.float8_e4m3fn)
    message = refusal(golden.write(tmp_path / "files"), begun=True)
    assert f"{key} holds float8_e4m3fn; expected float16, bfloat16 or float32" in message
