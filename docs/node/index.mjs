// Questions about pictures, in Node or Electron's main process: everything known here comes from docs/bundle.md.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import { Bundle } from "./bundle.mjs";
import { pixelValues } from "./pixels.mjs";
import { Detokenizer, promptIds } from "./text.mjs";

const DEFAULT_MAX_NEW_TOKENS = 300;

export class TinyGPTV {
  static async load(folder) {
    const model = new TinyGPTV();
    model.bundle = await Bundle.load(folder);
    model.manifest = model.bundle.manifest;
    model.tokenizer = new Tokenizer(JSON.parse(await readFile(join(folder, "tokenizer.json"), "utf8")), {});
    return model;
  }

  async encodeImage(picture) {
    return { embeds: await this.bundle.encodeImage(await pixelValues(picture, this.manifest.image)) };
  }

  async *stream(picture, question, { maxNewTokens, stop = [], template, signal } = {}) {
    const { name, templates } = { name: template ?? this.manifest.default_template, templates: this.manifest.templates };
    const chosen = templates.find((each) => each.name === name);
    if (!chosen) throw new Error(`no prompt template ${name}; expected ${templates.map((t) => t.name).join(", ")}`);
    if (typeof question !== "string" || !question.trim()) throw new Error("the question is empty; expected some text");
    const [before, after] = promptIds(this.tokenizer, chosen, question);
    const image = picture.embeds ? picture : await this.encodeImage(picture);
    const room = this.bundle.context - before.length - image.embeds.length / this.bundle.hidden - after.length;
    const limit = maxNewTokens ?? Math.min(DEFAULT_MAX_NEW_TOKENS, room);
    if (!(limit >= 1) || limit > room) {
      throw new Error(`the context has room for ${room} new tokens; found ${limit}: ask for fewer, or more briefly`);
    }
    const stops = [...this.manifest.stop_strings, ...stop];
    const text = new Detokenizer(this.tokenizer, stops, chosen.before_answer ?? "");
    let finishReason = "stop";
    for await (const id of this.bundle.generate(before, image.embeds, after)) {
      const piece = text.push(id);
      if (piece) yield piece;
      if (text.stopped) break;
      finishReason = signal?.aborted ? "cancelled" : text.ids.length >= limit ? "length" : "stop";
      if (finishReason !== "stop") break;
    }
    const rest = text.finish();
    if (rest) yield rest;
    return { text: text.text, tokenIds: text.ids, finishReason: text.stopped ? "stop" : finishReason };
  }

  async ask(picture, question, options) {
    const stream = this.stream(picture, question, options);
    for (;;) {
      const { done, value } = await stream.next();
      if (done) return value;
    }
  }
}
