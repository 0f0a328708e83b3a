// The app's samples, which the demo understands. Drawn here, so nothing is fetched.
const SIZE = 384;
const SAMPLES = [
  {
    name: "red triangle", task: "[detection]", words: "triangle", colour: "#f41616", ground: "#f6f8fa",
    trace: (path) => { path.moveTo(192, 72); path.lineTo(288, 252); path.lineTo(96, 252); },
  },
  {
    name: "blue circle", task: "", words: "What color is the shape?", colour: "#204aeb", ground: "#eef3f8",
    trace: (path) => path.arc(204, 180, 84, 0, 2 * Math.PI),
  },
  {
    name: "teal rectangle", task: "[grounding]", words: "", colour: "#008080", ground: "#f6f0f4",
    trace: (path) => path.rect(60, 120, 252, 156),
  },
];

function sampleCanvas({ colour, ground, trace }) {
  const canvas = make("canvas", { width: SIZE, height: SIZE });
  canvas.setAttribute("aria-hidden", "true");
  const pen = canvas.getContext("2d");
  const path = new Path2D();
  trace(path);
  pen.fillStyle = ground;
  pen.fillRect(0, 0, SIZE, SIZE);
  pen.fillStyle = colour;
  pen.fill(path);
  return canvas;
}

function sampleButton(sample, open) {
  const canvas = sampleCanvas(sample);
  const question = sample.words && !sample.task ? sample.words : `${taskName(sample.task)} ${sample.words && `“${sample.words}”`}`.trim();
  const act = async () => open(await pictureOf(canvas.toDataURL("image/png"), sample.name), sample);
  const made = button(canvas, act, { className: "sample" });
  made.append(make("span", {}, question));
  made.setAttribute("aria-label", `${question}: a sample, ${sample.name}`);
  return made;
}

// What is there before the first question.
function welcome() {
  const parts = [];
  if (model && !turns.length) {
    const sentence = (text) => make("p", { className: "note" }, text);
    if (!picture && !missing && model.demo) {
      parts.push(sentence("No picture at hand? Try one of these:"));
      parts.push(make("div", { className: "samples" }, ...SAMPLES.map((sample) => sampleButton(sample, openSample))));
    }
    if (picture) {
      const questions = model.demo ? ["What shape is it?", "What color is it?", "Is there a circle in the image?"] : ["What is in this picture?", "Describe this picture.", "What colours do you see?"];
      parts.push(sentence("Ask in your own words, or try:"));
      parts.push(make("div", { className: "suggestions" }, ...questions.map((words) => button(words, () => ask({ task: "", words })))));
    } else if (model.demo) {
      const about = make("p", { className: "aside" }, make("strong", {}, "This is the built-in demo."));
      about.append(" It knows circles, rectangles and triangles in plain colours, one a picture, and nothing else. To ask about photos, serve an exported model: ", make("code", {}, "tinygptv serve --bundle FOLDER"));
      parts.push(about);
    } else {
      parts.push(make("p", { className: "aside" }, `${model.id} answers questions about pictures on the machine that serves this page. Each answer builds on those before it.`));
    }
  }
  const key = parts.map((part) => part.textContent).join("|");
  if (key === $("welcome").dataset.key) return; // what has the focus stays
  $("welcome").dataset.key = key;
  $("welcome").replaceChildren(...parts);
}
