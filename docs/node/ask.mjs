// node ask.mjs [--json] BUNDLE PICTURE QUESTION [MAX_NEW_TOKENS]
//
// Prints the answer as it is written; with --json, one object with text, tokenIds and finishReason at the end.

import { TinyGPTV } from "./index.mjs";

const json = process.argv.includes("--json");
const [folder, picture, question, maxNewTokens] = process.argv.slice(2).filter((word) => word !== "--json");
if (!question) {
  console.error("usage: node ask.mjs [--json] BUNDLE PICTURE QUESTION [MAX_NEW_TOKENS]");
  process.exit(2);
}
try {
  const model = await TinyGPTV.load(folder);
  const stream = model.stream(picture, question, { maxNewTokens: maxNewTokens && Number(maxNewTokens) });
  let next = await stream.next();
  for (; !next.done; next = await stream.next()) if (!json) process.stdout.write(next.value);
  console.log(json ? JSON.stringify(next.value) : "");
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
