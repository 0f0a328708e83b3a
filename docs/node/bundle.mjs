// A tinygptv bundle from JavaScript: its manifest, its embedding table, its three graphs.
// Everything that is known here comes from docs/bundle.md; all sizes come from the graphs' contract in the manifest, so
// that it runs bundles of every family.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import "./telemetry.mjs";
import * as ort from "onnxruntime-node";
import { createSession, sessionOptions } from "./products.mjs";

/** float16 bits to a number (IEEE 754 binary16). */
function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The embedding table: an .npy file of float16 or float32, [words, hidden]. */
class Embeddings {
  constructor(file) {
    const magic = file.subarray(1, 6).toString("latin1");
    if (file[0] !== 0x93 || magic !== "NUMPY") throw new Error("embed_tokens.npy: not an .npy file");
    const long = file[6] > 1; // format 1.0 has a header length of 2 bytes, later ones of 4
    const length = long ? file.readUInt32LE(8) : file.readUInt16LE(8);
    const start = (long ? 12 : 10) + length;
    const header = file.subarray(long ? 12 : 10, start).toString("latin1");
    const [, dtype] = header.match(/'descr': '([^']+)'/);
    const [, words, hidden] = header.match(/'shape': \((\d+), (\d+)\)/).map(Number);
    if (dtype !== "<f2" && dtype !== "<f4") throw new Error(`embed_tokens.npy: dtype ${dtype}; expected <f2 or <f4`);
    Object.assign(this, { file, start, half: dtype === "<f2", words, hidden });
  }

  /** Rows of token ids, one after the other, float32. */
  rows(tokenIds) {
    const rows = new Float32Array(tokenIds.length * this.hidden);
    const bytes = this.half ? 2 : 4;
    tokenIds.forEach((id, row) => {
      for (let i = 0; i < this.hidden; i++) {
        const at = this.start + (id * this.hidden + i) * bytes;
        rows[row * this.hidden + i] = this.half ? halfToFloat(this.file.readUInt16LE(at)) : this.file.readFloatLE(at);
      }
    });
    return rows;
  }
}

export class Bundle {
  /** Load the bundle in `folder`. */
  static async load(folder) {
    const manifest = JSON.parse(await readFile(join(folder, "manifest.json"), "utf8"));
    if (![1, 2].includes(manifest.format_version)) {
      throw new Error(`format_version ${manifest.format_version}; expected 1 or 2`);
    }
    const options = await sessionOptions();
    const session = (name) => {
      const { file, precision } = manifest.graphs[name];
      return createSession(join(folder, file), precision, options);
    };
    const bundle = new Bundle();
    bundle.manifest = manifest;
    bundle.embeddings = new Embeddings(await readFile(join(folder, "embed_tokens.npy")));
    [bundle.visionEncoder, bundle.projector, bundle.decoder] = await Promise.all(
      ["vision_encoder", "projector", "decoder"].map(session),
    );
    return bundle;
  }

  #input(name) {
    return this.manifest.graphs.decoder.inputs.find((spec) => spec.name === name);
  }

  /** The decoder's hidden size. */
  get hidden() {
    return this.#input("inputs_embeds").axes[2].size;
  }

  /** A tensor of the KV cache: batch, heads, past_length, head_dim. */
  get past() {
    return this.#input("past_key_values.{i}.key");
  }

  /** Tokens that prompt and answer have room for. */
  get context() {
    return this.past.axes[2].maximum ?? this.manifest.architecture.language.max_position_embeddings;
  }

  /** Image embeddings [image tokens * hidden] of pixel values, float32 [3, size, size]. */
  async encodeImage(pixelValues) {
    const size = this.manifest.image.image_size;
    const pixels = new ort.Tensor("float32", pixelValues, [1, 3, size, size]);
    const { image_features } = await this.visionEncoder.run({ pixel_values: pixels });
    const { image_embeds } = await this.projector.run({ image_features });
    return image_embeds.data;
  }

  /**
   * Decode greedily: token ids as they come, until end of text or until nobody asks for more.
   *
   * A program that cares for speed would bind past and present to the same buffers, as docs/bundle.md says; here each
   * step's present is the next one's past, which the graph takes as well.
   */
  async *generate(before, imageEmbeds, after) {
    const { hidden, past } = this;
    const shape = [1, past.axes[1].size, 0, past.axes[3].size];
    const numbers = { int8: Int8Array, float16: Uint16Array, float32: Float32Array }[past.dtype];
    let cache = {};
    for (const name of this.decoder.inputNames) {
      if (name.startsWith("past_key_values.")) cache[name] = new ort.Tensor(past.dtype, new numbers(0), shape);
    }
    const [start, end] = [this.embeddings.rows(before), this.embeddings.rows(after)];
    let embeds = new Float32Array(start.length + imageEmbeds.length + end.length);
    embeds.set(start);
    embeds.set(imageEmbeds, start.length);
    embeds.set(end, start.length + imageEmbeds.length);
    let length = 0;
    for (;;) {
      const count = embeds.length / hidden;
      const positions = BigInt64Array.from({ length: count }, (_, i) => BigInt(length + i));
      length += count;
      const outputs = await this.decoder.run({
        inputs_embeds: new ort.Tensor("float32", embeds, [1, count, hidden]),
        position_ids: new ort.Tensor("int64", positions, [1, count]),
        seqlens_k: new ort.Tensor("int32", [length - 1], [1]),
        total_sequence_length: new ort.Tensor("int32", [length], []),
        num_logits_to_keep: new ort.Tensor("int64", [1n], []),
        ...cache,
      });
      const logits = outputs.logits.data;
      let best = 0;
      for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
      if (this.manifest.eos_token_ids.includes(best)) return;
      yield best;
      cache = Object.fromEntries(
        Object.keys(cache).map((name) => [name, outputs[name.replace("past_key_values", "present")]]),
      );
      embeds = this.embeddings.rows([best]);
    }
  }
}
