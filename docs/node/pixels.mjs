// A picture file to pixel values: section 1 of docs/bundle.md. sharp decodes, and turns the picture upright; blending
// and resizing are Pillow's, to the last bit, as other numbers would at times give other answers.

import sharp from "sharp";

const BITS = 22; // Pillow's fixed-point coefficients: 32 - 8 - 2

/** float32 [3, size, size] of a path or the bytes of an image file; `image` is the manifest's. */
export async function pixelValues(picture, image) {
  if (image.resample !== "bicubic") throw new Error(`resample ${image.resample}; expected bicubic`);
  const size = image.image_size;
  const level = fitted(await decoded(picture), image.fit ?? "squash", size, image.pad_color);
  const values = new Float32Array(3 * size * size);
  const { fround } = Math;
  for (let channel = 0; channel < 3; channel++) {
    const [mean, std] = [fround(image.mean[channel]), fround(image.std[channel])];
    for (let i = 0; i < size * size; i++) {
      values[channel * size * size + i] = fround(fround(fround(level[3 * i + channel] / 255) - mean) / std);
    }
  }
  return values;
}

/** Upright RGB on white, 8 bits a channel. */
async function decoded(picture) {
  const source = sharp(picture, { ignoreIcc: true }).rotate().toColourspace("srgb").ensureAlpha();
  const reading = source.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
  const { data, info } = await reading.catch((error) => {
    const name = typeof picture === "string" ? picture : "the picture";
    const found = error.message.startsWith("Input file is missing") ? "does not exist" : "cannot be read";
    throw new Error(`${name} ${found}; expected a JPEG, PNG, WebP, AVIF, GIF or TIFF file`, { cause: error });
  });
  const { width, height, channels } = info; // 4, or 2 of grey
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, at = 0; at < data.length; at += channels) {
    const alpha = data[at + channels - 1];
    for (let channel = 0; channel < 3; channel++, i++) {
      const blend = data[at + (channels > 2 ? channel : 0)] * alpha + 255 * (255 - alpha) + 128;
      rgb[i] = (blend + (blend >> 8)) >> 8; // divided by 255 and rounded, as Pillow does
    }
  }
  return { data: rgb, width, height };
}

function fitted(picture, fit, size, color) {
  const { width, height, data } = picture;
  if (fit === "squash") return resized(picture, size, size);
  if (fit === "pad") {
    const side = Math.max(width, height);
    const [left, top] = [(side - width) >> 1, (side - height) >> 1];
    const square = Buffer.alloc(3 * side * side, Uint8Array.from(color));
    for (let y = 0; y < height; y++) square.set(data.subarray(3 * y * width, 3 * (y + 1) * width), 3 * ((top + y) * side + left));
    return resized({ data: square, width: side, height: side }, size, size);
  }
  if (fit !== "crop") throw new Error(`fit ${fit}; expected squash, pad or crop`);
  const longer = Math.floor((size * Math.max(width, height)) / Math.min(width, height));
  const [w, h] = width <= height ? [size, longer] : [longer, size];
  const whole = resized(picture, w, h);
  const [left, top] = [(w - size) >> 1, (h - size) >> 1];
  const square = new Uint8Array(3 * size * size);
  for (let y = 0; y < size; y++) {
    const start = 3 * ((top + y) * w + left);
    square.set(whole.subarray(start, start + 3 * size), 3 * y * size);
  }
  return square;
}

/** Pillow's bicubic resize with antialiasing: rows to their new width, rounded to levels, and then columns. */
function resized({ data, width, height }, newWidth, newHeight) {
  const narrow = newWidth === width ? data : new Uint8Array(3 * newWidth * height);
  if (narrow !== data) {
    const taps = coefficients(width, newWidth);
    for (let y = 0; y < height; y++) convolve(data, 3 * y * width, 3, narrow, 3 * y * newWidth, 3, taps);
  }
  if (newHeight === height) return narrow;
  const out = new Uint8Array(3 * newWidth * newHeight);
  const taps = coefficients(height, newHeight);
  for (let x = 0; x < newWidth; x++) convolve(narrow, 3 * x, 3 * newWidth, out, 3 * x, 3 * newWidth, taps);
  return out;
}

/** One row or column of RGB. */
function convolve(from, start, step, to, target, targetStep, taps) {
  for (const { first, weights } of taps) {
    for (let channel = 0; channel < 3; channel++) {
      let sum = 1 << (BITS - 1);
      let at = start + first * step + channel;
      for (let i = 0; i < weights.length; i++, at += step) sum += from[at] * weights[i];
      to[target + channel] = Math.min(255, Math.max(0, sum >> BITS));
    }
    target += targetStep;
  }
}

/** For each new pixel, where its part of the old ones begins and what each of them weighs, in fixed point. */
function coefficients(size, newSize) {
  const scale = size / newSize;
  const spread = Math.max(scale, 1);
  return Array.from({ length: newSize }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 2 * spread + 0.5));
    const end = Math.min(size, Math.trunc(center + 2 * spread + 0.5));
    const weights = Array.from({ length: end - first }, (_, x) => bicubic((x + first - center + 0.5) / spread));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: Int32Array.from(weights, (w) => fixed(w / total)) };
  });
}

function fixed(weight) {
  return Math.trunc(weight * 2 ** BITS + (weight < 0 ? -0.5 : 0.5));
}

function bicubic(x) {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
}
