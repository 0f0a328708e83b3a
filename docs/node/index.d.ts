/** A path, or the bytes of an image file. */
export type Picture = string | Uint8Array;

export interface AnswerOptions {
  /** At most so many tokens; 300, or what the context has room for. */
  maxNewTokens?: number;
  /** Texts that end the answer and are not part of it, besides the bundle's own. */
  stop?: string[];
  /** Name of a prompt template of the bundle; its default one if left out. */
  template?: string;
  /** Ends the answer where it is, at the next token. */
  signal?: AbortSignal;
}

export interface Answer {
  text: string;
  /** As generated: their text may go on with a stop string, at which `text` is cut. */
  tokenIds: number[];
  finishReason: "stop" | "length" | "cancelled";
}

export interface EncodedImage {
  readonly embeds: Float32Array;
}

export class TinyGPTV {
  /** Load the bundle in a folder. */
  static load(folder: string): Promise<TinyGPTV>;
  /** The bundle's manifest.json. */
  readonly manifest: any;
  /** Show the model a picture once, for many questions. */
  encodeImage(picture: Picture): Promise<EncodedImage>;
  /** Ask, and get the text as it is written; what the generator returns is the whole answer. */
  stream(
    picture: Picture | EncodedImage,
    question: string,
    options?: AnswerOptions,
  ): AsyncGenerator<string, Answer, void>;
  /** Ask, and wait for the whole answer. */
  ask(picture: Picture | EncodedImage, question: string, options?: AnswerOptions): Promise<Answer>;
}
