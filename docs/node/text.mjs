// A question to token ids, and token ids to text.

const SLOT = "<ImageHere>";

/** Token ids before and after the picture: section 2 of docs/bundle.md, for one question about one picture. */
export function promptIds(tokenizer, template, question) {
  if (question.includes(SLOT)) throw new Error(`the question holds ${SLOT}, the mark where a picture is put in`);
  const words = template.strip_question ? question.trim() : question;
  const prompt = template.system + template.user + template.image + words + template.assistant;
  return prompt.split(SLOT).map((part) => tokenizer.encode(part, { add_special_tokens: false }).ids);
}

/** Text as it comes: no half characters, and nothing of a stop string. */
export class Detokenizer {
  constructor(tokenizer, stops, prefix) {
    Object.assign(this, { tokenizer, stops: stops.filter(Boolean), prefix, ids: [], text: "", shown: 0, stopped: false });
  }

  /** Take a token; returns what can be shown by now. */
  push(id) {
    this.ids.push(id);
    return this.#advance(false);
  }

  /** What was held back until the end. */
  finish() {
    return this.stopped ? "" : this.#advance(true);
  }

  #advance(isFinal) {
    const known = this.ids.filter((id) => this.tokenizer.id_to_token(id) !== undefined); // logits may be wider
    let text = this.tokenizer.decode(known, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
    if (!isFinal && text.length < this.prefix.length && this.prefix.startsWith(text)) return "";
    if (text.startsWith(this.prefix)) text = text.slice(this.prefix.length);
    const found = this.stops.map((stop) => [text.indexOf(stop), stop.length]).filter(([start]) => start >= 0);
    if (found.length) {
      const [start] = found.sort(([a, long], [b, short]) => a + long - b - short || a - b)[0]; // completed first
      this.stopped = true;
      text = text.slice(0, start);
    } else if (!isFinal) {
      text = text.slice(0, text.length - this.#open(text));
    }
    const piece = text.slice(this.shown);
    this.shown = Math.max(this.shown, text.length);
    this.text = text;
    return piece;
  }

  /** Length of the end of a text that may become something else: half a character, or the beginning of a stop string. */
  #open(text) {
    const whole = text.replace(/\ufffd+$/, "");
    if (whole.length < text.length) return text.length - whole.length + this.#open(whole);
    const longest = Math.min(text.length, Math.max(0, ...this.stops.map((stop) => stop.length - 1)));
    for (let length = longest; length > 0; length--) {
      if (this.stops.some((stop) => stop.startsWith(text.slice(-length)))) return length;
    }
    return 0;
  }
}
