// Talking to the server.
let model = null; // as /v1/models describes it
let token = "";
let running = null; // {turn, control}
let arriving = null; // a promise: what was kept and the server's model, then each picture that is opened
let leaving = false; // a reload ends requests before it ends the page
const LEFT = "The page was left before this answer was complete";
const UNREACHABLE = "The server does not answer. Is it still running?";
const headers = () => ({ "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) });

async function connect() {
  const response = await fetch("v1/models", { headers: headers() });
  $("access").hidden = response.status !== 401;
  if (response.ok) [model] = (await response.json()).data;
  return response.ok;
}

function messagesFor(turn) {
  const said = turns.filter((other) => other !== turn && isSaid(other));
  const messages = said.flatMap(({ asked, answer }) => [
    { role: "user", content: asked },
    { role: "assistant", content: answer },
  ]);
  messages.push({ role: "user", content: turn.asked });
  if (picture) {
    const [first] = messages;
    first.content = [{ type: "image_url", image_url: { url: picture.url } }, { type: "text", text: first.content }];
  }
  return messages;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: {")) yield JSON.parse(part.slice(6));
  }
}

// Ends `turn`, in whatever way; `step` is called whenever there is something new of it.
async function answer(turn, step) {
  const control = new AbortController();
  running = { turn, control };
  step();
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify({ messages: messagesFor(turn), stream: true }),
      signal: control.signal,
    });
    if (!response.ok) {
      $("access").hidden = response.status !== 401;
      const document = await response.json().catch(() => null);
      throw new Error(document?.error?.message ?? `The server answered with status ${response.status}`);
    }
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const [choice] = event.choices;
      turn.answer += choice.delta.content ?? "";
      turn.regions = choice.delta.boxes ?? turn.regions;
      if (event.truncated_turns) turn.note = `The oldest ${counted(event.truncated_turns, "question")} no longer fit and were left out`;
      if (choice.finish_reason) {
        turn.end = choice.finish_reason;
        if (turn.end === "length") turn.note = "Cut short at its greatest length";
      }
      if (!turn.end && running?.turn === turn) step();
    }
    if (!turn.end) throw new Error("The answer broke off");
  } catch (error) {
    if (turn.end) return; // complete, whatever the connection did then
    turn.end = error.name === "AbortError" ? "stopped" : "failed";
    const failure = error instanceof TypeError ? (leaving ? LEFT : UNREACHABLE) : error.message;
    turn.note = turn.end === "stopped" ? "Stopped" : failure;
  } finally {
    if (running?.turn === turn) {
      running = null;
      step();
    }
  }
}
