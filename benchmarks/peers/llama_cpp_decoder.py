"""llama.cpp, by its C functions as llama-cpp-python binds them: Phi-2 in Q8_0 and Q4_0.

Its own converter is not in the wheel, so `prepare` writes the fp16 GGUF itself, with q, k and v in one matrix (which
llama.cpp prefers), and has llama.cpp quantise it as `llama-quantize` does.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from decoding import EMBEDDINGS, Adapter, Loaded, measure
from gguf.utility import SafetensorsLocal
from numpy.typing import NDArray

QUANTISATIONS = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18}
PLAIN_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
CONTEXT_STEP = 256
"""llama.cpp rounds contexts up to this."""


def prepare(phi: Path, out: Path) -> None:
    whole = out / "f16.gguf"
    write_gguf(phi, whole)
    for name, kind in QUANTISATIONS.items():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = kind
        made = out / f"{name}.gguf"
        if llama_cpp.llama_model_quantize(bytes(whole), bytes(made), ctypes.byref(settings)):
            raise SystemExit(f"llama.cpp could not quantise {whole} to {name}; its own messages are above")
    whole.unlink()


def write_gguf(phi: Path, path: Path) -> None:
    """The published folder as one fp16 GGUF; matrices stay on disk until they are written."""
    config = json.loads((phi / "config.json").read_text(encoding="utf-8"))
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    head_dim = config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, "phi2")
    writer.add_name("Phi-2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_rope_dimension_count(int(config["partial_rotary_factor"] * head_dim))
    writer.add_file_type(llama_cpp.LLAMA_FTYPE_MOSTLY_F16)
    # Token ids are fed as they are: the vocabulary only has to have the right length.
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])

    tensors = {
        name: tensor
        for file in sorted(phi.glob("*.safetensors"))
        for name, tensor in SafetensorsLocal(file).tensors.items()
    }

    def values(name: str) -> NDArray[np.floating]:
        tensor = tensors[name]
        if tensor.dtype != "F16":
            raise SystemExit(f"{name} is {tensor.dtype}; expected F16 as in the published files")
        return tensor.mmap_bytes().view(np.float16).reshape(tensor.shape)

    def add(name: str, array: NDArray[np.floating]) -> None:
        # llama.cpp wants vectors in fp32.
        writer.add_tensor(name, array.astype(np.float32) if array.ndim == 1 else array)

    add("token_embd.weight", values("model.embed_tokens.weight"))
    for kind in ("weight", "bias"):
        add(f"output_norm.{kind}", values(f"model.final_layernorm.{kind}"))
        add(f"output.{kind}", values(f"lm_head.{kind}"))
        for i in range(layers):
            for theirs, ours in PLAIN_NAMES.items():
                add(f"blk.{i}.{ours}.{kind}", values(f"model.layers.{i}.{theirs}.{kind}"))
            projections = [values(f"model.layers.{i}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            add(f"blk.{i}.attn_qkv.{kind}", np.concatenate(projections))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


class Model:
    """A loaded GGUF and a context that is made anew when a sequence needs a larger one."""

    def __init__(self, path: Path, threads: int) -> None:
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()  # mapped file, weights repacked where kernels want it
        self.model = llama_cpp.llama_model_load_from_file(bytes(path), settings)
        if not self.model:
            raise SystemExit(f"llama.cpp could not load {path}; its own messages are above")
        self.threads = threads
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = self.start_context(CONTEXT_STEP)

    def start_context(self, positions: int) -> llama_cpp.llama_context_p:
        settings = llama_cpp.llama_context_default_params()  # fp16 cache, flash attention where it helps
        settings.n_ctx = positions
        settings.n_threads = settings.n_threads_batch = self.threads
        return llama_cpp.llama_init_from_model(self.model, settings)

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        needed = -(-(len(prompt) + new_tokens) // CONTEXT_STEP) * CONTEXT_STEP
        if needed > llama_cpp.llama_n_ctx(self.context):
            llama_cpp.llama_free(self.context)
            self.context = self.start_context(needed)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        return self.decode(prompt)

    def decode(self, token_ids: Sequence[int]) -> Iterator[int]:
        while True:
            fed = (llama_cpp.llama_token * len(token_ids))(*token_ids)
            status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(fed, len(fed)))
            if status:
                raise SystemExit(f"llama_decode returned {status}")
            # A batch made by llama_batch_get_one has logits for its last token only.
            logits = llama_cpp.llama_get_logits_ith(self.context, -1)
            token = int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())
            yield token
            token_ids = [token]


def load(folder: Path, variant: str, threads: int) -> Loaded:
    model = Model(folder / f"{variant}.gguf", threads)
    settings = {
        "weights": variant,
        "cache": "fp16",
        "flash_attention": "auto",
        "mapped_file": True,
        "batch": llama_cpp.llama_context_default_params().n_batch,
        "micro_batch": llama_cpp.llama_context_default_params().n_ubatch,
        "system": llama_cpp.llama_print_system_info().decode(),
    }
    # The table of embeddings has the precision of the file, which stores blocks of 32 and their scale.
    table = EMBEDDINGS // 32 * BLOCK_BYTES[variant]
    return Loaded(model.generate, llama_cpp.llama_model_size(model.model) - table, settings)


ADAPTER = Adapter(
    peer="llama.cpp",
    description=__doc__ or "",
    packages=("llama-cpp-python",),
    variants=tuple(QUANTISATIONS),
    prepare=prepare,
    load=load,
)

if __name__ == "__main__":
    sys.exit(measure(ADAPTER))
