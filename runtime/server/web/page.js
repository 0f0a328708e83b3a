// The page: puts its parts together.
let withoutPicture = false;

const canDraw = () => Boolean(picture && model?.boxes && model.fit === "squash" && model.tasks.includes("[identify]"));

function tell(text, { bad = false, label = "", act = null } = {}) {
  const [shownText, action] = $("notice").children;
  shownText.textContent = text;
  action.hidden = !label;
  action.textContent = label;
  action.onclick = () => { tell(""); act(); };
  $("notice").className = bad ? "bad" : "";
  $("notice").hidden = !text;
}

function save() {
  const draft = recalled ? recalled.draft : { task, words: question.value };
  if (!keepTalk({ earlier, draft })) tell("This conversation is too long for the browser to keep: a reload would lose some of it");
}

function mayClear(title, yes) {
  if (!turns.length || $("confirm").open) return !turns.length;
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = `The conversation${picture ? ` about ${picture.name}` : ""} (${counted(turns.length, "question")}) will be cleared.`;
  $("confirm-yes").textContent = yes;
  const dialog = $("confirm");
  dialog.returnValue = "";
  dialog.showModal();
  $("confirm-no").focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

function clearTalk() {
  const before = running;
  running = null;
  before?.control.abort();
  turns = [];
  withoutPicture = false;
  $("talk").replaceChildren();
  showBoxes(null);
  tell("");
}

// Shows all that depends on model, picture and conversation.
function refresh() {
  const busy = Boolean(running);
  document.body.classList.toggle("talking", turns.length > 0);
  $("drop").hidden = Boolean(picture);
  $("stage").hidden = $("bar").hidden = !picture;
  $("fresh").disabled = turns.length === 0;
  $("name").textContent = picture?.name ?? "";
  $("hint").textContent = missing
    ? `${missing.name} was too large for the browser to keep. Open it again to go on.`
    : "Drop one here, paste one, or choose a file.";
  $("howto").textContent = canDraw() ? "draw a box on it to ask what is inside" : "";
  $("picture").classList.toggle("draws", canDraw());
  $("picture").setAttribute("role", canDraw() ? "application" : "img");
  $("picture").tabIndex = canDraw() ? 0 : -1;
  $("badge").hidden = !busy || Boolean(running.turn.answer);
  $("model").hidden = !model;
  $("model").textContent = model?.id ?? "";
  $("knows").textContent = !model ? "" : model.demo ? "The demo knows simple shapes and colours only." : "Small models make mistakes. Check what matters.";
  for (const chip of $("tasks").children) {
    chip.disabled = !picture || (busy && chip.dataset.at === "once");
    if (chip.dataset.at !== "once") chip.ariaPressed = String(chip.value === task);
  }
  question.placeholder = TASKS[task]?.hint ?? (turns.length ? "Ask another question" : "Ask about the picture");
  $("send").textContent = busy ? "Stop" : "Ask";
  $("send").disabled = !busy && !question.value.trim();
  welcome();
}

// `instead`: a turn that failed, in whose place this one comes.
async function ask({ task: tag, words: text, box = null, instead = null }) {
  if (running) return tell("An answer is being written: stop it first (Esc), or wait");
  if (!$("access").hidden) return $("token").focus();
  if (!model) return tell("The server does not answer yet", { bad: true, label: "Try again", act: start });
  if (!picture && missing) return tell(`Open ${missing.name} again to go on`, { bad: true });
  if (!picture && !withoutPicture && !turns.some(isSaid)) {
    const act = () => { withoutPicture = true; ask({ task: tag, words: text, instead }); };
    return tell("There is no picture yet: choose one first", { bad: true, label: "Ask without a picture", act });
  }
  const found = box ?? (canDraw() && tag === "[identify]" ? boxIn(text, picture.bitmap) : null);
  if (tag === "[identify]" && canDraw() && !found) {
    $("picture").focus();
    return tell("Draw a box on the picture: that asks what is in it. With the keyboard: arrow keys, Shift and arrow keys, Enter");
  }
  tell("");
  const turn = { task: tag, words: found && !box ? words(text) : text, box: found, answer: "", regions: [], end: "", note: "" };
  turn.asked = writeQuestion(turn, picture);
  if (text) earlier = [...earlier.filter((old) => old.task !== tag || old.words !== text), { task: tag, words: text }].slice(-EARLIER);
  if (tag === task) task = "";
  recalled = null;
  if (question.value.trim() === text || readQuestion(question.value, model.tasks).words === text) question.value = "";
  grow();
  if (instead) dropTurn(instead);
  turns.push(turn);
  addTurn(turn);
  showBoxes(turn);
  toNewest();
  enlarge(false);
  focusQuestion();
  await answer(turn, () => {
    if (!turns.includes(turn)) return;
    showTurn(turn);
    if (turn.end) {
      if (shown === turn) showBoxes(turn);
      $("status").textContent = turn.note || "The answer is complete";
      save();
    }
    refresh();
  });
}

const retry = (turn) => ask({ ...turn, instead: turn });

async function openPicture(next) {
  next.digest ??= digest(next.url);
  const same = missing && missing.digest === next.digest;
  if (!same) {
    if (!(await mayClear(`Open ${next.name}?`, "Open and start over"))) return false;
    clearTalk();
  }
  picture = next;
  missing = null;
  tell("");
  refresh();
  redraw();
  if (!keepPicture()) tell(`${next.name} is too large for the browser to keep: after a reload you would open it again`);
  save();
  return true;
}

const openFile = (file) => (arriving = openAfter(arriving, file));

async function openAfter(before, file) {
  await before;
  if (!file) return tell("There is no picture in that", { bad: true });
  let next;
  try {
    next = await pictureIn(file);
  } catch {
    return tell(`${file.name || "That"} is not a picture that this browser can show`, { bad: true });
  }
  next.name ||= "a pasted picture";
  if (await openPicture(next)) question.focus();
}

async function openSample(next, { task: tag, words: text }) {
  if (await openPicture(next)) ask({ task: tag, words: text });
}

// On a narrow screen the picture is small beside a conversation.
function enlarge(large) {
  document.body.classList.toggle("enlarged", large);
  $("enlarge").textContent = large ? "Shrink" : "Enlarge";
}

// All turns again: their cut-outs need the picture.
function redraw() {
  $("talk").replaceChildren();
  for (const turn of turns) addTurn(turn);
  showBoxes(turns.at(-1) ?? null);
  toNewest();
}

const stop = () => running?.control.abort();

async function start() {
  try {
    await connect();
  } catch {
    tell("The server does not answer", { bad: true, label: "Try again", act: start });
  }
  if (model) offerTasks();
  refresh();
  redraw();
}

async function begin() {
  const before = await recover();
  if (before) {
    ({ turns, earlier } = before);
    picture = before.kept;
    missing = picture ? null : before.picture;
  }
  await start();
  if (before && !question.value) put(before.draft);
}

$("access").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  await start();
  tell(model ? "" : "That is not the token", { bad: true });
});
$("choose").addEventListener("click", () => $("file").click());
$("replace").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { openFile($("file").files[0]); $("file").value = ""; });
$("remove").addEventListener("click", async () => {
  if (!(await mayClear("Remove the picture?", "Remove and start over"))) return;
  picture = missing = null;
  clearTalk();
  keepPicture();
  save();
  refresh();
  $("choose").focus();
});
$("fresh").addEventListener("click", async () => {
  if (!(await mayClear("Start over?", "Start over"))) return;
  missing = null;
  clearTalk();
  save();
  refresh();
  question.focus();
});
$("enlarge").addEventListener("click", () => enlarge(!document.body.classList.contains("enlarged")));
$("newest").addEventListener("click", () => { toNewest(); question.focus(); });
for (const [id, value] of [["confirm-no", ""], ["confirm-yes", "yes"]]) $(id).addEventListener("click", () => $("confirm").close(value));
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("confirm").open) stop(); });
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) { event.preventDefault(); openFile(file); }
});
const hasFiles = (event) => event.dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  document.body.classList.remove("over");
  if (!hasFiles(event)) return;
  event.preventDefault();
  openFile(event.dataTransfer.files[0]);
});
window.addEventListener("pagehide", save);
window.addEventListener("beforeunload", () => {
  leaving = true;
  setTimeout(() => { leaving = false; }, 3000); // where it was but a download
});
new ResizeObserver(draw).observe($("stage"));
letDraw(canDraw, (box) => ask({ task: "[identify]", words: task === "[identify]" ? question.value.trim() : "", box }));
followTalk();
refresh();
arriving = begin();
