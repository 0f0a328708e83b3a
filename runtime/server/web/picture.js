// The picture, at the screen's own resolution, with boxes on it.
// Okabe and Ito's palette, as drawing.py has it, and the ink that stands out on each colour.
const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"];
const INKS = ["#000", "#000", "#000", "#000", "#fff", "#000", "#000"];
const LABEL = 20; // high, in CSS pixels
let picture = null; // {bitmap, url, name}
let regions = []; // [{phrase, boxes}], boxes in pixels of the picture
let drawn = null; // the box that is being drawn

async function pictureOf(url, name) {
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  return { bitmap: await createImageBitmap(new Blob([bytes])), url, name };
}

async function pictureIn(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  // The server looks at what is in it; a file that the system has no type for is still a picture.
  return pictureOf(url.startsWith("data:image/") ? url : url.replace(/^data:[^;,]*/, "data:image/unknown"), file.name);
}

function draw() {
  const canvas = $("picture");
  if (!picture) return;
  const { bitmap } = picture;
  const { clientWidth, clientHeight } = $("stage");
  const scale = Math.min(clientWidth / bitmap.width, clientHeight / bitmap.height);
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const ratio = window.devicePixelRatio;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
  pen.drawImage(bitmap, 0, 0, width, height);
  const parts = regions.flatMap(({ phrase, boxes }, number) =>
    boxes.map((box) => ({ phrase, colour: number % COLOURS.length, edges: box.map((edge) => edge * scale) })),
  );
  for (const { edges, colour } of parts) outline(pen, edges, COLOURS[colour], INKS[colour]);
  pen.font = "600 13px system-ui, sans-serif";
  pen.textBaseline = "middle";
  const taken = [];
  for (const part of parts) if (part.phrase) label(pen, part, width, height, taken);
  if (drawn) {
    pen.setLineDash([6, 4]);
    outline(pen, drawn.map((edge) => edge * scale), COLOURS[0], INKS[0]);
  }
  const found = regions.map(({ phrase, boxes }) => `${phrase || "a box"} at ${boxes.map((box) => box.map(Math.round)).join(" and ")}`);
  canvas.setAttribute("aria-label", [picture.name, ...found].join("; "));
}

function outline(pen, [left, top, right, bottom], colour, ink) {
  pen.lineWidth = 3;
  pen.strokeStyle = colour;
  pen.strokeRect(left + 1.5, top + 1.5, Math.max(1, right - left - 3), Math.max(1, bottom - top - 3));
  if (Math.min(right - left, bottom - top) < 12) return;
  pen.lineWidth = 1; // shows the box where the picture has its colour too
  pen.strokeStyle = ink;
  pen.globalAlpha = 0.5;
  pen.strokeRect(left + 3.5, top + 3.5, right - left - 7, bottom - top - 7);
  pen.globalAlpha = 1;
}

// Above its box, below it, or inside; off the other labels where there is room.
function label(pen, { phrase, colour, edges: [left, top, right, bottom] }, width, height, taken) {
  let text = phrase;
  while (text && pen.measureText(text).width > width - 12) text = `${text.replace(/…$/, "").slice(0, -1).trimEnd()}…`.replace(/^…$/, "");
  const wide = pen.measureText(text).width + 12;
  const places = [top - LABEL, bottom, top, bottom - LABEL].flatMap((y) => [left, right - wide].map((x) => [x, y]));
  const spots = places.map(([x, y]) => [Math.max(0, Math.min(x, width - wide)), y]).filter(([, y]) => y >= 0 && y + LABEL <= height);
  const free = ([x, y]) => taken.every(([a, b, other]) => x + wide <= a || a + other <= x || y + LABEL <= b || b + LABEL <= y);
  const [x, y] = spots.find(free) ?? spots[0] ?? [0, 0];
  taken.push([x, y, wide]);
  pen.fillStyle = COLOURS[colour];
  pen.fillRect(x, y, wide, LABEL);
  pen.fillStyle = INKS[colour];
  pen.fillText(text, x + 6, y + LABEL / 2 + 1);
}

// What is in a box, small.
function cutOut([left, top, right, bottom]) {
  const scale = 44 / Math.max(right - left, bottom - top);
  const canvas = make("canvas");
  const [width, height] = [right - left, bottom - top].map((side) => Math.max(6, Math.round(side * scale)));
  Object.assign(canvas, { width: 2 * width, height: 2 * height });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  canvas.setAttribute("aria-hidden", "true");
  canvas.getContext("2d").drawImage(picture.bitmap, left, top, right - left, bottom - top, 0, 0, 2 * width, 2 * height);
  return canvas;
}

// Lets the user draw a box: with a pointer, or with the arrow keys.
function letDraw(allowed, done) {
  const canvas = $("picture");
  let start = null;
  const point = (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const within = (value, most) => Math.max(0, Math.min(value, 1)) * most;
    return [within((event.clientX - left) / width, picture.bitmap.width), within((event.clientY - top) / height, picture.bitmap.height)];
  };
  const end = (box) => {
    start = drawn = null;
    draw();
    if (box) done(box);
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (!allowed() || event.button !== 0) return;
    start = point(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = point(event);
    drawn = [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
    draw();
  });
  canvas.addEventListener("pointerup", () => {
    if (!start) return;
    const least = (6 * picture.bitmap.width) / canvas.clientWidth; // less is a click
    end(drawn && drawn[2] - drawn[0] > least && drawn[3] - drawn[1] > least ? drawn : null);
  });
  canvas.addEventListener("pointercancel", () => end(null));
  canvas.addEventListener("keydown", (event) => {
    if (!allowed()) return;
    const { width, height } = picture.bitmap;
    const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (across || down) {
      event.preventDefault();
      const [left, top, right, bottom] = drawn ?? [0.3 * width, 0.3 * height, 0.7 * width, 0.7 * height];
      const [x, y] = [(across * width) / 50, (down * height) / 50];
      const moved = event.shiftKey ? [left, top, right + x, bottom + y] : [left + x, top + y, right + x, bottom + y];
      const fits = moved[0] >= -0.01 && moved[1] >= -0.01 && moved[2] <= width + 0.01 && moved[3] <= height + 0.01;
      if (fits && moved[2] - moved[0] > width / 100 && moved[3] - moved[1] > height / 100) drawn = moved;
      draw();
    } else if (drawn && event.key === "Enter") end(drawn.map((edge, at) => Math.max(0, Math.min(edge, at % 2 ? height : width))));
    else if (drawn && event.key === "Escape") end(null);
  });
  canvas.addEventListener("blur", () => { if (drawn && !start) end(null); });
}
