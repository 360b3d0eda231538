// What is known of the queue and of one's own decisions, and their way to the server.

export const state = {
  queue: null, // {classes, texts, random, entries}
  name: "",
  decisions: new Map(), // place in the queue -> [status, number of the class or null]
  others: new Set(), // places on which somebody else has decided
  onlyOpen: false,
  history: [], // what undo takes back: {places, resolves}, as the file of records has it
  first: [], // places that come before all others: those marked in the grid
  standing: null,
  keys: true,
};

const waiting = []; // requests that are not acknowledged yet, in order
let sending = null; // the promise of those under way
let listener = () => {};

export const onChange = (call) => { listener = call; };
export const unsaved = () => waiting.reduce((sum, each) => sum + each.decisions.length, 0);

export async function get(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.text()).trim() || `the server answered ${answer.status}`);
  return answer.json();
}

export async function post(address, content) {
  const answer = await fetch(address, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(content),
  });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `the server answered ${answer.status}`);
  return answer.json();
}

// Decisions show at once and are sent one request after the other, so that the file has them in their order.
export function decide(decisions, resolves = false) {
  for (const { place, status, verified } of decisions) {
    if (!resolves) state.decisions.set(place, [status, verified ?? null]);
  }
  state.history.push({ places: decisions.map((each) => each.place), resolves });
  enqueue({ name: state.name, decisions, resolves });
}

export function undo() {
  const last = state.history.pop();
  if (last === undefined) return null;
  if (!last.resolves) last.places.forEach((place) => state.decisions.delete(place));
  enqueue({
    name: state.name, resolves: last.resolves, decisions: last.places.map((place) => ({ place, status: "undo" })),
  });
  return last;
}

function enqueue(request) {
  waiting.push(request);
  send();
}

// Resolves once everything is acknowledged, or one request has failed.
export function send() {
  sending ??= deliver().finally(() => { sending = null; });
  return sending;
}

async function deliver() {
  try {
    while (waiting.length) {
      await post("/decide", waiting[0]);
      waiting.shift();
      listener(null);
    }
  } catch (error) {
    listener(error);
  }
}

// Places that are still to be decided, in their order: those that were marked in the grid first.
export function open() {
  const isOpen = (place) => !state.decisions.has(place) && !(state.onlyOpen && state.others.has(place));
  const marked = state.first.filter(isOpen);
  const rest = [];
  for (let place = 0; place < state.queue.entries.length; place++) {
    if (isOpen(place) && !marked.includes(place)) rest.push(place);
  }
  return [...marked, ...rest];
}

export const nameOf = (number) => (number === null ? "none" : state.queue.classes[number]);
export const element = (id) => document.getElementById(id);
export function make(kind, text = "", attributes = {}) {
  const made = document.createElement(kind);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
