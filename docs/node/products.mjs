// On x86 without VNNI, onnxruntime adds products of uint8 and int8 in 16 bits, which overflows without an error. It can
// take int8 weights as uint8 instead, but not those that the body of a Scan takes from outside.

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";

/** An ONNX file of one node: y = MatMulInteger(a: uint8 [2, 64], b: int8 [64, 32]). */
const PRODUCTS = Buffer.from(
  "08083a5c0a180a01610a0162120179220d4d61744d756c496e74656765721201675a130a0161120e0a0c080212080a0208020a0208405a130a" +
    "0162120e0a0c080312080a0208400a02082062130a0179120e0a0c080612080a0208020a02082042040a00100d",
  "hex",
);
/** The type of a Scan node, as field 4 of onnx.proto's NodeProto. */
const SCAN = Buffer.from("\x22\x04Scan");

/** Options for sessions with exact int8 products: tried out. */
export async function sessionOptions() {
  const session = await ort.InferenceSession.create(PRODUCTS);
  const a = new ort.Tensor("uint8", new Uint8Array(2 * 64).fill(255), [2, 64]);
  const b = new ort.Tensor("int8", new Int8Array(64 * 32).fill(127), [64, 32]);
  const { y } = await session.run({ a, b });
  await session.release();
  return y.data[0] === 64 * 255 * 127 ? {} : { extra: { session: { x64quantprecision: "1" } } };
}

/** A session whose int8 products are exact; an error if there can be none. */
export async function createSession(file, precision, options) {
  if (options.extra && precision !== "fp32" && (await readFile(file)).includes(SCAN)) {
    throw new Error(
      `${file}: onnxruntime-node cannot compute it exactly on this processor, which has no VNNI; use Python, ` +
        "or export the model with --precision fp32",
    );
  }
  return ort.InferenceSession.create(file, options);
}
