// Start, views and keys.

import * as figures from "/page/figures.js";
import * as grid from "/page/grid.js";
import * as single from "/page/single.js";
import { element, get, onChange, post, send, state, undo, unsaved } from "/page/state.js";

const REFRESH = 1000; // milliseconds between two looks at the figures, at least
const POLL = 5000;
let view = "";
let due = null;

onChange((error) => {
  element("trouble").hidden = error === null;
  const count = unsaved() === 1 ? "1 decision is" : `${unsaved()} decisions are`;
  element("trouble-text").textContent = error ? `${count} not saved yet: ${error.message}` : "";
  figures.progress();
  if (error === null) soon();
});

function soon() {
  due ??= setTimeout(async () => {
    due = null;
    await figures.refresh().catch(() => {}); // the next one will tell, and decisions have an alert of their own
  }, REFRESH);
}

function show(name) {
  view = name;
  for (const each of ["single", "grid", "disputes"]) {
    element(`to-${each}`).setAttribute("aria-pressed", String(each === name));
  }
  element("who").hidden = element("grid").hidden = element("single").hidden = element("done").hidden = true;
  if (name === "grid") {
    element("grid").hidden = false;
    grid.begin();
  } else {
    single.begin(name === "disputes");
    (element("single").hidden ? element("done-title") : element("stage")).focus();
  }
  figures.progress();
}

function act(work) {
  const before = state.decisions.size;
  work();
  figures.tick(Math.max(state.decisions.size - before, 0));
  figures.progress();
}

async function takeBack() {
  const last = undo();
  if (last === null) {
    element("spoken").textContent = "There is nothing to undo.";
  } else if (view === "grid" && !last.resolves) {
    grid.begin();
  } else {
    if (last.resolves) await send().then(figures.refresh).catch(() => {}); // which say again what others decided
    if (last.resolves !== (view === "disputes")) show(last.resolves ? "disputes" : "single");
    single.next(last.places[0]);
    element("spoken").textContent = `Undone. ${element("spoken").textContent}`;
  }
  figures.progress();
}

function confirm() {
  let odd = false;
  act(() => { odd = grid.confirm(); });
  if (odd) show("single");
}

const KEYS = {
  k: () => act(single.keep),
  u: () => act(() => single.putOff("unsure")),
  s: () => act(() => single.putOff("skip")),
  "/": () => element("typed").focus(),
  "+": () => single.scale(1),
  "=": () => single.scale(1),
  "-": () => single.scale(-1),
  f: () => single.scale(0),
  c: () => single.toggleReminder(),
};
const GRID_KEYS = {
  x: () => grid.mark(),
  Enter: confirm,
  "[": () => grid.otherClass(-1),
  "]": () => grid.otherClass(1),
  ...Object.fromEntries(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].map((key) => [key, () => grid.move(key)])),
};
const EVERYWHERE = {
  z: takeBack,
  g: () => show("grid"),
  v: () => show("single"),
  d: async () => { await figures.refresh().catch(() => {}); show("disputes"); },
  "?": () => element("help").showModal(),
};

function press(key) {
  const of_view = view === "grid" ? GRID_KEYS : KEYS;
  const found = of_view[key] ?? EVERYWHERE[key];
  if (found) found();
  else if (view !== "grid" && /^[0-9]$/.test(key)) act(() => single.digit(Number(key)));
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  const writing = event.target.matches("input, select, textarea") || element("help").open;
  if (event.key === "Escape" && event.target === element("typed")) element("stage").focus();
  if (!view || !state.keys || writing || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Enter" && event.target.matches("button:not([data-place])")) return; // it presses the button
  if (event.repeat && !event.key.startsWith("Arrow")) return; // a key that is held down decides once
  if (press(event.key.length === 1 ? event.key.toLowerCase() : event.key)) event.preventDefault();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button[data-key]");
  if (button && (view || button.dataset.key === "?")) press(button.dataset.key);
});

element("confirm").addEventListener("click", confirm);
element("grid-class").addEventListener("change", grid.fill);
element("retry").addEventListener("click", send);
element("other-name").addEventListener("click", () => {
  sessionStorage.removeItem("name");
  location.reload();
});
element("keys-on").addEventListener("change", (event) => {
  state.keys = event.target.checked;
  sessionStorage.setItem("no-keys", state.keys ? "" : "yes");
});
element("naming").addEventListener("submit", (event) => {
  event.preventDefault();
  let taken = false;
  act(() => { taken = single.typed(element("typed").value); });
  if (!taken) return;
  element("typed").value = "";
  element("stage").focus();
});
window.addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });

element("who").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("name", element("name").value.trim());
  sessionStorage.setItem("only-open", element("only-open").checked ? "yes" : "");
  await enter();
});

async function enter() {
  state.name = sessionStorage.getItem("name");
  state.onlyOpen = sessionStorage.getItem("only-open") === "yes";
  let answer;
  try {
    answer = await post("/decided", { name: state.name });
  } catch (error) {
    sessionStorage.removeItem("name");
    return ask(error.message);
  }
  state.decisions = new Map(Object.entries(answer.decisions).map(([place, decision]) => [Number(place), decision]));
  state.others = new Set(answer.others);
  state.history = answer.steps;
  await figures.refresh();
  element("me").textContent = state.name;
  element("figures").hidden = false;
  show("single");
  setInterval(soon, POLL);
}

function ask(problem = "") {
  element("who").hidden = false;
  element("far").textContent = problem || `${state.queue.entries.length} samples`;
  element("name").focus();
}

async function start() {
  element("keys-on").checked = state.keys = sessionStorage.getItem("no-keys") !== "yes";
  state.queue = await get("/queue");
  const few = state.queue.classes.length <= 10;
  element("digits").textContent = few ? "0 – 9" : "1 – 3";
  element("digits-do").textContent = `relabel as ${few ? "the class with this number" : "this guess of the model"}`;
  await (sessionStorage.getItem("name") ? enter() : ask());
}

start().catch((error) => {
  element("trouble").hidden = false;
  element("trouble-text").textContent = `The page could not be loaded: ${error.message}`;
});
