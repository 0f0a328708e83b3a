"use strict";
// Questions and answers as people read them.
const $ = (id) => document.getElementById(id);
const TASKS = {
  "[caption]": { name: "Caption", asks: "", title: "One sentence about the picture" },
  "[vqa]": { name: "Short answer", hint: "A question with a short answer", title: "An answer of a word or two" },
  "[grounding]": { name: "Describe with boxes", asks: "describe this image", title: "A description, with its parts on the picture" },
  "[detection]": { name: "Find", hint: "What to find", title: "All things of a kind, with a box around each" },
  "[refer]": { name: "Where is", hint: "Where is what?", title: "A box around one thing" },
  "[identify]": { name: "What is in this box", hint: "Draw a box on the picture", title: "Draw a box on the picture to ask about it" },
};
// `asks`: they need no words of the user's, and these stand in their place.

const taskName = (tag) => TASKS[tag]?.name ?? tag.replace(/[[\]]/g, "");

// A question as it was typed: a tag at its beginning that the model knows is a task.
function readQuestion(text, tags) {
  const [, task, words] = text.match(/^\s*(\[\w+\])\s*([^]*)$/) ?? [];
  return tags.includes(task) ? { task, words } : { task: "", words: text.trim() };
}

// What the model is asked.
function writeQuestion({ task, words, box }, picture) {
  if (task === "[identify]" && box) return `${task} ${words || "what is this"} ${boxText(box, picture.bitmap)}`;
  return `${task} ${words || (TASKS[task]?.asks ?? "")}`.trim();
}

// A box in pixels as the model reads it, in hundredths; never without area.
function boxText([left, top, right, bottom], { width, height }) {
  const hundredths = (low, high, size) => {
    const ends = [Math.round((100 * low) / size), Math.round((100 * high) / size)];
    return ends[0] < ends[1] ? ends : [Math.floor((100 * low) / size), Math.ceil((100 * high) / size)];
  };
  const [x1, x2] = hundredths(left, right, width);
  const [y1, y2] = hundredths(top, bottom, height);
  return `{<${x1}><${y1}><${x2}><${y2}>}`;
}

// The box in a question that was typed, in pixels.
function boxIn(text, { width, height }) {
  const [x1, y1, x2, y2] = (text.match(/\{<(\d+)><(\d+)><(\d+)><(\d+)>\}/) ?? []).slice(1).map(Number);
  return x1 < x2 && y1 < y2 && x2 <= 100 && y2 <= 100
    ? [(x1 * width) / 100, (y1 * height) / 100, (x2 * width) / 100, (y2 * height) / 100]
    : null;
}

// An answer without its boxes, which are drawn instead; also one that has only begun.
function words(text) {
  const bare = text.replace(/<\/?p>|<delim>|\{(<-?\d*>?)*\}?|<[/a-z]*$/g, "");
  return bare.replace(/ +([,.;:!?)])/g, "$1").replace(/ {2,}/g, " ").trim();
}

const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function button(label, act, properties = {}) {
  const made = make("button", { type: "button", ...properties }, label);
  made.addEventListener("click", act);
  return made;
}
