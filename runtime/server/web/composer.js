// Where questions are written: the field, the tasks above it, and earlier questions.
const EARLIER = 50; // questions
let task = ""; // the tag that is chosen
let earlier = []; // questions that were typed, {task, words}
let recalled = null; // {at, draft}: where among them the field is
const question = $("question");

function offerTasks() {
  const known = Object.keys(TASKS).filter((tag) => model.tasks.includes(tag) && (tag !== "[identify]" || model.fit === "squash"));
  const others = model.tasks.filter((tag) => !(tag in TASKS));
  $("tasks").replaceChildren(
    ...[...known, ...others].map((tag) => {
      const chip = button(taskName(tag), () => choose(tag), { value: tag, title: TASKS[tag]?.title ?? tag });
      if (TASKS[tag]?.asks !== undefined) chip.dataset.at = "once";
      return chip;
    }),
  );
  $("tasks").hidden = !model.tasks.length;
}

function choose(tag) {
  if (TASKS[tag]?.asks !== undefined) return ask({ task: tag, words: "" });
  task = task === tag ? "" : tag;
  if (task === "[identify]") enlarge(true);
  refresh();
  (task === "[identify]" ? $("picture") : question).focus();
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
  $("send").disabled = !running && !question.value.trim();
}

function put({ task: tag, words: text }) {
  task = model?.tasks.includes(tag) && TASKS[tag]?.asks === undefined ? tag : "";
  question.value = task === tag ? text : `${tag} ${text}`.trim();
  question.setSelectionRange(question.value.length, question.value.length);
  grow();
  refresh();
}

// Through earlier questions, where the field is empty or shows one of them; returns whether there was one.
function recall(step) {
  const at = (recalled?.at ?? earlier.length) + step;
  if (at < 0 || at > earlier.length || (!recalled && (step > 0 || question.selectionEnd > 0))) return false;
  recalled ??= { draft: { task, words: question.value } };
  recalled.at = at;
  put(earlier[at] ?? recalled.draft);
  if (at === earlier.length) recalled = null;
  return true;
}

// A question can be typed faster than a picture or the server's model arrives.
async function submit() {
  await arriving;
  const typed = readQuestion(question.value, model?.tasks ?? []);
  if (typed.task || typed.words) ask(typed.task ? typed : { task, words: typed.words });
}

// What had the focus may be gone; where a keyboard would come up over the answer, the field does not ask for it.
function focusQuestion() {
  if (matchMedia("(hover: hover)").matches) question.focus();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) stop();
  else submit();
});
question.addEventListener("input", () => { recalled = null; grow(); });
question.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit();
  } else if ((event.key === "ArrowUp" && recall(-1)) || (event.key === "ArrowDown" && recall(1))) event.preventDefault();
});
