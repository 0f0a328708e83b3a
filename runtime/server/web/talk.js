// The conversation. A turn is {task, words, box, asked, answer, regions, end, note}: `asked` as the model reads it,
// `end` is "stop", "length", "stopped", "failed", or "" while the answer is being written.
let turns = [];
let shown = null; // the turn whose boxes are on the picture
let follows = true; // the newest is kept in sight
const views = new WeakMap(); // of turns: elements
const hasBoxes = () => Boolean(model?.boxes);

const textOf = ({ answer }) => (hasBoxes() ? words(answer) : answer.trim());
const isSaid = ({ end, answer }) => end === "stop" || end === "length" || (end === "stopped" && answer);

// The box that the user drew belongs to what the answer shows.
const regionsOf = (turn) => [...(turn.box ? [{ phrase: textOf(turn), boxes: [turn.box] }] : []), ...turn.regions];

function showBoxes(turn) {
  shown = turn;
  regions = turn ? regionsOf(turn) : [];
  draw();
  for (const other of turns) views.get(other)?.boxes?.setAttribute("aria-pressed", String(other === turn));
}

function addTurn(turn) {
  const text = make("div", {});
  if (turn.task) text.append(make("span", { className: "tag" }, taskName(turn.task)), " ");
  text.append(make("span", { className: "text" }, turn.words));
  const question = make("li", { className: "question" }, text);
  if (turn.box && picture) question.prepend(cutOut(turn.box));
  const said = make("div", { className: "text" });
  const foot = make("div", { className: "foot" });
  const copy = button("Copy", () => copyText(textOf(turn) || turn.answer, copy), { className: "quiet copy" });
  const answer = make("li", { className: "answer" }, make("div", { className: "row" }, said, copy), foot);
  $("talk").append(question, answer);
  views.set(turn, { question, answer, said, copy, foot });
  showTurn(turn);
}

function dropTurn(turn) {
  turns = turns.filter((other) => other !== turn);
  const { question, answer } = views.get(turn);
  question.remove();
  answer.remove();
}

function showTurn(turn) {
  const view = views.get(turn);
  const text = textOf(turn);
  view.answer.ariaBusy = String(!turn.end);
  view.said.textContent = text || (isSaid(turn) ? (turn.regions.length ? "Shown on the picture" : "The model said nothing") : "");
  view.copy.hidden = !turn.end || !(text || (isSaid(turn) && turn.answer));
  if (!turn.end) {
    const doing = text ? "Writing" : picture ? "Looking" : "Thinking";
    if (view.doing === doing) return;
    view.doing = doing;
    view.foot.replaceChildren(make("span", {}, `${doing} `, dots()));
    $("status").textContent = `${doing} …`;
  } else {
    view.foot.replaceChildren(...footOf(turn, view));
  }
}

function dots() {
  const made = make("span", { className: "dots" }, make("i"), make("i"), make("i"));
  made.setAttribute("aria-hidden", "true");
  return made;
}

function* footOf(turn, view) {
  if (turn.note) yield make("span", { className: turn.end === "failed" ? "bad" : "" }, turn.note);
  if (turn.end === "failed") yield button("Try again", () => retry(turn), { className: "retry" });
  const found = regionsOf(turn);
  if (found.length) {
    const swatches = found.map((_, number) => {
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = COLOURS[number % COLOURS.length];
      return swatch;
    });
    const boxes = found.reduce((sum, region) => sum + region.boxes.length, 0);
    view.boxes = button("", () => showBoxes(turn), { className: "quiet boxes", title: "Show on the picture" });
    view.boxes.append(...swatches.slice(0, COLOURS.length), counted(boxes, "box").replace("boxs", "boxes"));
    view.boxes.setAttribute("aria-pressed", String(shown === turn));
    yield view.boxes;
  }
}

async function copyText(text, copy) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no such thing where a page comes from another machine without TLS
    const field = make("textarea", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    copy.focus();
  }
  copy.textContent = "Copied";
  copy.classList.add("done");
  $("status").textContent = "Copied";
  setTimeout(() => { copy.textContent = "Copy"; copy.classList.remove("done"); }, 1500);
}

function toNewest() {
  follows = true;
  $("scroller").scrollTop = $("scroller").scrollHeight;
  $("newest").hidden = true;
}

function followTalk() {
  const scroller = $("scroller");
  let last = 0;
  const below = () => scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop;
  scroller.addEventListener("scroll", () => {
    if (below() < 1) follows = true;
    else if (scroller.scrollTop < last) follows = false;
    last = scroller.scrollTop;
    $("newest").hidden = follows;
  });
  const grown = new ResizeObserver(() => { if (follows) toNewest(); else $("newest").hidden = below() < 4; });
  grown.observe(scroller);
  grown.observe($("talk"));
}
