// ORT_DISABLE_TELEMETRY=1 node ask.mjs BUNDLE PIXELS PROMPT [MAX_NEW_TOKENS]
//
// BUNDLE: a tinygptv bundle.
// PIXELS: pixel values as the encoder takes them, raw float32 [3, size, size], little-endian.
// PROMPT: JSON of the prompt's token ids on both sides of the image: {"before": [...], "after": [...]}.
// Prints the answer's token ids as one JSON list. The variable is for ONNX Runtime 1.29 and later, which otherwise
// collects events for upload.

import { readFile } from "node:fs/promises";
import { Bundle } from "./bundle.mjs";

const [folder, pixelFile, promptFile, maxNewTokens = "20"] = process.argv.slice(2);
if (!promptFile) {
  console.error("usage: node ask.mjs BUNDLE PIXELS PROMPT [MAX_NEW_TOKENS]");
  process.exit(2);
}
const pixels = await readFile(pixelFile);
const prompt = JSON.parse(await readFile(promptFile, "utf8"));
const bundle = await Bundle.load(folder);
const image = await bundle.encodeImage(new Float32Array(pixels.buffer, pixels.byteOffset, pixels.length / 4));
const ids = [];
for await (const id of bundle.generate(prompt.before, image, prompt.after, Number(maxNewTokens))) ids.push(id);
console.log(JSON.stringify(ids));
