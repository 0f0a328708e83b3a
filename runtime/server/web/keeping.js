// What a reload finds again: in this tab's own storage, which ends with the tab.
const FIELDS = ["task", "words", "box", "asked", "answer", "regions", "end", "note"];
let missing = null; // {name, digest} of a picture that was too large to keep

function store(key, value) {
  try {
    sessionStorage.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}

function stored(key) {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
}

function forget(key) {
  try {
    sessionStorage.removeItem(key);
  } catch { /* then nothing was stored either */ }
}

function digest(text) {
  let sum = 0;
  for (let at = 0; at < text.length; at += 1) sum = (Math.imul(sum, 31) + text.charCodeAt(at)) | 0;
  return `${text.length} ${sum}`;
}

// Returns whether all of it was kept.
function keepPicture() {
  forget("picture");
  return !picture || store("picture", picture.url);
}

function keepTalk(more) {
  const kept = turns.map((turn) => Object.fromEntries(FIELDS.map((field) => [field, turn[field]])));
  const about = picture ? { name: picture.name, digest: picture.digest } : missing;
  const text = JSON.stringify({ turns: kept, picture: about, ...more });
  if (store("talk", text)) return true;
  forget("picture"); // words before pictures
  return store("talk", text) && false;
}

// The conversation that was kept, with its picture where there was room for it.
async function recover() {
  try {
    const talk = JSON.parse(stored("talk") ?? "null");
    const url = stored("picture");
    if (!talk) return null;
    const kept = talk.picture && url ? { ...(await pictureOf(url, talk.picture.name)), digest: talk.picture.digest } : null;
    for (const turn of talk.turns) {
      if (turn.end) continue;
      turn.end = "failed";
      turn.note = LEFT;
    }
    return { ...talk, kept };
  } catch {
    return null; // of another version of this page
  }
}
