"""The standard route's graph, made in 8 GB of memory and 5 GB of disk.

Tracing Phi-2 by optimum-onnx writes 11 GB of fp32 ONNX twice and reads it back while torch still holds its own. Here
the model that is traced has one layer's weights in all of its layers, and after the quantisation every layer gets a
copy of its own, shifted so that no two are alike. The graph, its sizes and kernels are those of the standard route, and
so are speed and memory; the values are noise either way.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from optimum.exporters.onnx import onnx_export_from_model
from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer
from transformers import PhiConfig, PhiForCausalLM

LAYER = re.compile(r"/layers\.(\d+)/")
TRACED, QUANTIZED = "model.onnx", "model_quantized.onnx"


def write_quantized(phi: Path, out: Path) -> None:
    """Fill ``out`` with what ``ORTModelForCausalLM`` loads."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        traced = Path(folder) / "traced"
        trace(phi, traced)
        bypass_identities(traced / TRACED)
        settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
        small = Path(folder) / "quantized"
        ORTQuantizer.from_pretrained(traced).quantize(settings, save_dir=small)
        out.mkdir()
        model = onnx.load(small / QUANTIZED)
        give_layers_their_own(model)
        onnx.save(model, out / QUANTIZED, save_as_external_data=True, location=f"{QUANTIZED}.data")
        for document in small.glob("*.json"):
            document.rename(out / document.name)


def trace(phi: Path, folder: Path) -> None:
    """By optimum-onnx's own export, with all layers sharing the first one's parameters."""
    config = PhiConfig.from_pretrained(phi)
    config.torch_dtype = torch.float32
    one = PhiForCausalLM.from_pretrained(phi, num_hidden_layers=1, torch_dtype=torch.float32)
    with torch.device("meta"):
        model = PhiForCausalLM(config)
    for layer in model.model.layers:
        for name, module in layer.named_modules():
            first = one.model.layers[0].get_submodule(name)
            for kind in module._parameters:
                module._parameters[kind] = first._parameters[kind]
    for name in ("embed_tokens", "final_layernorm", "rotary_emb"):
        setattr(model.model, name, getattr(one.model, name))
    model.lm_head = one.lm_head
    onnx_export_from_model(
        model.eval(), folder, task="text-generation-with-past", do_validation=False, no_post_process=True
    )


def bypass_identities(path: Path) -> None:
    """Have products read a shared weight itself: the quantiser does not look behind the Identity that shares it."""
    model = onnx.load(path)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    shared = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity" and n.input[0] in weights}
    kept = [node for node in graph.node if not set(node.output) & shared.keys()]
    for node in kept:
        for place, name in enumerate(node.input):
            node.input[place] = shared.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    onnx.save(model, path)


def give_layers_their_own(model: onnx.ModelProto) -> None:
    """Every layer but the first gets copies of the arrays it shares, shifted by its number."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    made: set[str] = set()
    for node in model.graph.node:
        found = LAYER.search(node.name)
        layer = int(found[1]) if found else 0
        for place, name in enumerate(node.input):
            if not layer or name not in arrays or np.prod(arrays[name].dims) <= 1:
                continue
            own = f"{name}.layer{layer}"
            if own not in made:
                values = numpy_helper.to_array(arrays[name])
                model.graph.initializer.append(numpy_helper.from_array(np.roll(values, layer), own))
                made.add(own)
            node.input[place] = own
