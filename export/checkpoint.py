"""The four published files as one model: every key accounted for, LoRA merged, one tensor in memory at a time.

A :class:`Checkpoint` maps the names this project builds graphs from to float32 tensors. They are the published names,
except that a language layer's q, k and v are one matrix ``self_attn.qkv`` with rows in that order, and that a vision
block's ``attn.qkv.bias`` is whole. Nothing is read until a tensor is asked for; names and shapes are checked before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from tinygptv.runtime.architecture import Architecture
from tinygptv.runtime.errors import ExportError

from .accounting import KeyLedger, Shape, Tensor
from .architecture import QFORMER_LAYER, derive, read_untold
from .readers import TorchReader, open_phi, open_torch

LANGUAGE_PREFIX = "llama_model.base_model.model."

# In the published files and not part of the model: the Q-Former's text half and heads, T5, the ViT's norm and head.
UNUSED_QFORMER = (
    r"Qformer\.cls\..+",
    r"Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)",
    r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate\.dense|output\.dense|output\.LayerNorm)\.(weight|bias)",
)
UNUSED_BLIP2 = (*UNUSED_QFORMER, r"t5_(proj|model)\..+")
UNUSED_VISION = (r"norm\.(weight|bias)", r"head\.(weight|bias)")
QFORMER_KEYS = r"(Qformer\.|query_tokens$).*"


class Checkpoint(Mapping[str, Tensor]):
    """The merged model of four published files, read lazily: canonical name to float32 tensor.

    Args:
        phi: Phi-2 folder.
        vision: EVA-CLIP file (``eva_vit_g.pth``).
        qformer: BLIP-2 file (``blip2_pretrained_flant5xxl.pth``).
        checkpoint: TinyGPT-V stage file.
        stage: 1 to 4; decides the image size and which file must hold the Q-Former.
        architecture: JSON with what the files don't tell, for other than the published sizes.

    Raises:
        ExportError: A file cannot be read, or a key is missing, unknown or misshapen; names it.
    """

    def __init__(
        self, phi: Path, vision: Path, qformer: Path, checkpoint: Path, stage: int, architecture: Path | None = None
    ) -> None:
        self.phi, self._untold_file = phi, architecture
        self._readers = {
            "phi": open_phi(phi),
            "vision": open_torch(vision, "--vision"),
            "qformer": open_torch(qformer, "--qformer"),
            "checkpoint": open_torch(checkpoint, "--checkpoint"),
        }
        stage_reader = self._readers["checkpoint"]
        assert isinstance(stage_reader, TorchReader)
        untold = read_untold(architecture, stage)
        _check_stage(stage_reader, stage, untold.image_size)
        self.architecture: Architecture = derive(
            untold, phi, self._readers["vision"], self._readers["qformer"], stage_reader
        )
        self._lora_alpha = _lora_alpha(stage_reader)
        self.stored_bytes = 0
        """Bytes that reading every tensor once takes from the files."""
        self._shapes: dict[str, Shape] = {}
        self._recipes: dict[str, Callable[[], Tensor]] = {}
        stage_source = KeyLedger(
            stage_reader,
            f"this is not a TinyGPT-V file of stage {stage}, or its download is incomplete",
            lambda key: key.replace(".base_layer.", ".").replace(".default.", "."),
        )
        blip2 = KeyLedger(self._readers["qformer"], "--qformer is not blip2_pretrained_flant5xxl.pth")
        self._plan_vision(blip2)
        self._plan_projector(stage_source if stage == 4 else blip2, stage_source)
        self._plan_language(stage_source)
        self._finish(blip2, (*UNUSED_BLIP2, QFORMER_KEYS) if stage == 4 else UNUSED_BLIP2)
        self._finish(stage_source, UNUSED_QFORMER)

    def __getitem__(self, name: str) -> Tensor:
        return self._recipes[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, without reading it."""
        return self._shapes[name]

    def files(self) -> list[tuple[str, Path]]:
        """(role, path) of every file that decides what the bundle holds."""
        described = [path for path in sorted(self.phi.iterdir()) if path.suffix in (".json", ".txt")]
        weights = [(role, file) for role, reader in self._readers.items() for file in reader.files]
        given = [("architecture", self._untold_file)] if self._untold_file is not None else []
        return [*(("phi", path) for path in described), *weights, *given]

    def close(self) -> None:
        """Unmap the files; a later read maps them again."""
        for reader in self._readers.values():
            reader.close()

    def on_read(self, told: Callable[[int], object]) -> None:
        """Have ``told`` called with the stored bytes of each tensor read from now on."""
        for reader in self._readers.values():
            reader.on_read = told

    def _finish(self, source: KeyLedger, unused: Iterable[str]) -> None:
        source.finish(unused)
        self.stored_bytes += source.taken_bytes

    def _add(self, name: str, shape: Shape, recipe: Callable[[], Tensor]) -> None:
        self._shapes[name] = shape
        self._recipes[name] = recipe

    def _plan_vision(self, blip2: KeyLedger) -> None:
        sizes = self.architecture.vision
        source = KeyLedger(
            self._readers["vision"], "--vision is not eva_vit_g.pth, or --architecture does not describe it"
        )
        width, mlp, patch = sizes.hidden_size, sizes.intermediate_size, sizes.patch_size

        def copy(name: str, *shape: int) -> None:
            self._add(f"visual.{name}", shape, source.take(name, shape))

        copy("cls_token", 1, 1, width)
        copy("patch_embed.proj.weight", width, 3, patch, patch)
        copy("patch_embed.proj.bias", width)
        stored = source.shape("pos_embed") if source.has("pos_embed") else (1, sizes.num_tokens, width)
        side = round(max(1, stored[1] - 1) ** 0.5) if len(stored) == 3 else 1
        positions = source.take("pos_embed", (1, 1 + side * side, width))
        self._add(
            "visual.pos_embed", (1, sizes.num_tokens, width), lambda: resize_positions(positions(), sizes.num_tokens)
        )
        for i in range(sizes.num_hidden_layers):
            block = f"blocks.{i}"
            for norm in ("norm1", "norm2"):
                copy(f"{block}.{norm}.weight", width)
                copy(f"{block}.{norm}.bias", width)
            copy(f"{block}.attn.qkv.weight", 3 * width, width)
            q, v = (source.take(f"{block}.attn.{name}", (width,)) for name in ("q_bias", "v_bias"))
            self._add(
                f"visual.{block}.attn.qkv.bias",
                (3 * width,),
                lambda q=q, v=v: torch.cat((q(), torch.zeros(width), v())),  # type: ignore[misc]
            )
            for linear, rows, columns in (
                ("attn.proj", width, width),
                ("mlp.fc1", mlp, width),
                ("mlp.fc2", width, mlp),
            ):
                copy(f"{block}.{linear}.weight", rows, columns)
                copy(f"{block}.{linear}.bias", rows)
        last = sizes.num_hidden_layers
        # Only the block after the last used one is known to be there and unused (40 on disk, 39 used).
        self._finish(source, (*UNUSED_VISION, rf"blocks\.{last}\..+"))
        for parameter in ("weight", "bias"):
            self._add(f"ln_vision.{parameter}", (width,), blip2.take(f"ln_vision.{parameter}", (width,)))

    def _plan_projector(self, source: KeyLedger, stage: KeyLedger) -> None:
        sizes = self.architecture.qformer
        width, mlp, image_width = sizes.hidden_size, sizes.intermediate_size, self.architecture.vision.hidden_size

        def copy(name: str, *shape: int) -> None:
            self._add(name, shape, source.take(name, shape))

        def linear(name: str, rows: int, columns: int) -> None:
            copy(f"{name}.weight", rows, columns)
            copy(f"{name}.bias", rows)

        def norm(name: str) -> None:
            copy(f"{name}.weight", width)
            copy(f"{name}.bias", width)

        copy("query_tokens", 1, sizes.num_query_tokens, width)
        norm("Qformer.bert.embeddings.LayerNorm")
        for i in range(sizes.num_hidden_layers):
            layer = f"{QFORMER_LAYER}{i}"
            crosses = i % sizes.cross_attention_frequency == 0
            for attention, key_width in (("attention", width), ("crossattention", image_width))[: 1 + crosses]:
                linear(f"{layer}.{attention}.self.query", width, width)
                linear(f"{layer}.{attention}.self.key", width, key_width)
                linear(f"{layer}.{attention}.self.value", width, key_width)
                linear(f"{layer}.{attention}.output.dense", width, width)
                norm(f"{layer}.{attention}.output.LayerNorm")
            linear(f"{layer}.intermediate_query.dense", mlp, width)
            linear(f"{layer}.output_query.dense", width, mlp)
            norm(f"{layer}.output_query.LayerNorm")
        hidden = self.architecture.language.hidden_size
        for name, rows, columns in (
            ("llama_proj", sizes.projection_size, width),
            ("llama_proj2", hidden, sizes.projection_size),
        ):
            self._add(f"{name}.weight", (rows, columns), stage.take(f"{name}.weight", (rows, columns)))
            self._add(f"{name}.bias", (rows,), stage.take(f"{name}.bias", (rows,)))

    def _plan_language(self, stage: KeyLedger) -> None:
        sizes = self.architecture.language
        hidden, mlp, head = sizes.hidden_size, sizes.intermediate_size, sizes.head_dim
        phi = KeyLedger(
            self._readers["phi"],
            "--phi is not the Phi-2 folder this model was trained on",
            lambda key: key.replace(".base_layer.", "."),
        )

        def base(name: str, *shape: int) -> Callable[[], Tensor]:
            """From the Phi-2 folder, unless the stage file brings its own."""
            if stage.has(LANGUAGE_PREFIX + name):
                phi.overridden(name)
                return stage.take(LANGUAGE_PREFIX + name, shape)
            return phi.take(name, shape)

        def copy(name: str, *shape: int) -> None:
            self._add(name, shape, base(name, *shape))

        def optional(name: str, default: float, *shape: int) -> None:
            """A norm that the authors added: where no layer has it in any file, it changes nothing."""
            if stage.has_in_some_layer(LANGUAGE_PREFIX + name):
                phi.overridden(name)
                self._add(name, shape, stage.take(LANGUAGE_PREFIX + name, shape))
            elif phi.has_in_some_layer(name):
                self._add(name, shape, phi.take(name, shape))
            else:
                self._add(name, shape, lambda: torch.full(shape, default))

        copy("model.embed_tokens.weight", sizes.vocab_size, hidden)
        for i in range(sizes.num_hidden_layers):
            layer = f"model.layers.{i}"
            copy(f"{layer}.input_layernorm.weight", hidden)
            copy(f"{layer}.input_layernorm.bias", hidden)
            attention = f"{layer}.self_attn"
            fused = f"{attention}.query_key_value"
            if phi.has(f"{fused}.weight") or phi.has(f"{fused}.bias"):
                weight, bias = base(f"{fused}.weight", 3 * hidden, hidden), base(f"{fused}.bias", 3 * hidden)
            else:
                weight = self._head_major([base(f"{attention}.{p}_proj.weight", hidden, hidden) for p in "qkv"])
                bias = self._head_major([base(f"{attention}.{p}_proj.bias", hidden) for p in "qkv"])
            merged = self._with_lora(weight, stage, fused, 3 * hidden, hidden)
            self._add(f"{attention}.qkv.weight", (3 * hidden, hidden), lambda m=merged: self._part_major(m()))  # type: ignore[misc]
            self._add(f"{attention}.qkv.bias", (3 * hidden,), lambda b=bias: self._part_major(b()))  # type: ignore[misc]
            dense = self._with_lora(
                base(f"{attention}.dense.weight", hidden, hidden), stage, f"{attention}.dense", hidden, hidden
            )
            self._add(f"{attention}.dense.weight", (hidden, hidden), dense)
            copy(f"{attention}.dense.bias", hidden)
            for norm in ("q_layernorm", "k_layernorm"):
                optional(f"{attention}.{norm}.weight", 1.0, head)
                optional(f"{attention}.{norm}.bias", 0.0, head)
            optional(f"{layer}.post_layernorm.weight", 1.0, hidden)
            copy(f"{layer}.mlp.fc1.weight", mlp, hidden)
            copy(f"{layer}.mlp.fc1.bias", mlp)
            copy(f"{layer}.mlp.fc2.weight", hidden, mlp)
            copy(f"{layer}.mlp.fc2.bias", hidden)
        copy("model.final_layernorm.weight", hidden)
        copy("model.final_layernorm.bias", hidden)
        copy("lm_head.weight", sizes.vocab_size, hidden)
        copy("lm_head.bias", sizes.vocab_size)
        self._finish(phi, ())

    def _with_lora(
        self, weight: Callable[[], Tensor], stage: KeyLedger, name: str, rows: int, columns: int
    ) -> Callable[[], Tensor]:
        """``W + (alpha / r) B A``, computed in float32 (Hu et al. 2021, section 4.1)."""
        keys = [f"{LANGUAGE_PREFIX}{name}.lora_{part}.weight" for part in "AB"]
        a_shape, b_shape = (stage.shape(key) if stage.has(key) else () for key in keys)
        rank = max(1, (*a_shape[:1], *b_shape[1:], 1)[0])  # A's rows, or where it is missing B's columns
        a, b = stage.take(keys[0], (rank, columns)), stage.take(keys[1], (rows, rank))
        scale = self._lora_alpha / rank
        return lambda: torch.addmm(weight(), b(), a(), alpha=scale)

    def _head_major(self, parts: list[Callable[[], Tensor]]) -> Callable[[], Tensor]:
        """q, k and v put together as the fused matrix has them: rows ordered (head, q/k/v, head_dim)."""
        heads = self.architecture.language.num_attention_heads

        def fuse() -> Tensor:
            stacked = torch.stack([part().unflatten(0, (heads, -1)) for part in parts], dim=1)
            return stacked.flatten(0, 2)

        return fuse

    def _part_major(self, fused: Tensor) -> Tensor:
        """Rows (head, q/k/v, head_dim) reordered to all of q, then k, then v."""
        heads = self.architecture.language.num_attention_heads
        return fused.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def resize_positions(table: Tensor, tokens: int) -> Tensor:
    """Resize a ViT's position table [1, 1 + side^2, width] to ``tokens`` rows.

    Patch rows only, bicubic with ``align_corners=False`` as the published code does; the class token's row is kept.
    """
    if table.shape[1] == tokens:
        return table
    old, new = round((table.shape[1] - 1) ** 0.5), round((tokens - 1) ** 0.5)
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat((table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


def _check_stage(reader: TorchReader, stage: int, expected_size: int) -> None:
    """Stage files differ in what they hold and in the image size they were trained at: the two commonest mix-ups."""
    has_qformer = "query_tokens" in reader.shapes
    if stage == 4 and not has_qformer:
        raise ExportError(
            f"{reader.label}: missing query_tokens and Qformer.*, which a stage 4 file holds; "
            "likely cause: this is a file of stage 1, 2 or 3 (see --stage)"
        )
    if stage != 4 and has_qformer:
        raise ExportError(
            f"{reader.label}: unknown query_tokens; only a stage 4 file holds the Q-Former; "
            f"likely cause: this is a stage 4 file, given as stage {stage}"
        )
    model = reader.config.get("model")
    size = model.get("image_size") if isinstance(model, dict) else None
    if size is not None and size != expected_size:
        raise ExportError(
            f"{reader.label}: trained at image_size {size}, but to be exported for {expected_size} px; "
            "likely cause: wrong --stage, or a model of other sizes that needs its own --architecture"
        )


def _lora_alpha(reader: TorchReader) -> float:
    """16 unless the stage file's ``config.model.lora_alpha`` says otherwise."""
    model = reader.config.get("model")
    alpha = model.get("lora_alpha", 16) if isinstance(model, dict) else 16
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise ExportError(f"{reader.label}: config.model.lora_alpha is {alpha!r}; expected a positive number")
    return float(alpha)
