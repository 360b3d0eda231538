// One sample large: keep, relabel, unsure, skip; and the same for samples on which people disagree.

import { ahead, show, small } from "/page/samples.js";
import { decide, element, make, nameOf, open, state } from "/page/state.js";

const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];
const BUTTONS = 40; // classes that have a button each; more can be typed
const BY_DIGIT = 10; // classes up to which a digit is the number of a class; beyond, it is that of a guess
const LOOKED_AT = 2000; // samples of the queue among which examples are found
let current = null;
let zoom = 0;
let resolving = false;
let reminding = window.matchMedia("(min-width: 60rem)").matches;
let left = [];
const passed = new Set(); // disagreements that were put off
const resolved = new Set(); // and those that were resolved, of which the figures may not know yet

export const place = () => current;

export function begin(onDisputes) {
  resolving = onDisputes;
  passed.clear();
  const names = state.queue.classes.map((name, number) => ({ name, number }));
  element("names").replaceChildren(...names.map(({ name }) => make("option", "", { value: name })));
  const digit = (number) => (state.queue.classes.length <= BY_DIGIT ? String(number) : "");
  element("classes").replaceChildren(...(names.length > BUTTONS ? [] : names).map(({ name, number }) => {
    const button = make("button", name, { type: "button", "data-class": number });
    if (digit(number)) button.append(" ", make("kbd", digit(number)));
    button.addEventListener("click", () => relabel(number));
    return button;
  }));
  next();
}

// Show the next open sample, or a certain one, as after an undo. Returns whether there is one.
export function next(wanted = null) {
  if (resolving) resolved.delete(wanted);
  left = resolving ? disputes().filter((each) => !passed.has(each) && !resolved.has(each)) : open();
  const found = wanted ?? left[0] ?? null;
  current = found;
  element("single").hidden = found === null;
  element("done").hidden = found !== null;
  if (found === null) {
    const all = "You have decided on every sample of the queue.";
    element("done-text").textContent = resolving ? "There are no disagreements." : all;
    element("spoken").textContent = `${element("done-title").textContent}. ${element("done-text").textContent}`;
    return false;
  }
  show(found, (shown) => {
    if (current !== found) return;
    element("stage").replaceChildren(shown ?? make("p", "Loading …", { class: "waiting" }));
    element("stage").dataset.place = shown ? found : "";
    scale(0);
  });
  describe(found);
  ahead(left.filter((each) => each !== found));
  element("look").scrollIntoView({ block: "nearest" }); // whoever taps a button far below it sees the next sample
  return true;
}

const disputes = () => (state.standing?.disputed ?? []).map((each) => each.place);

function describe(place) {
  const { label, guesses, file, id } = state.queue.entries[place];
  const total = state.queue.entries.length;
  element("which").textContent = `Sample ${place + 1} of ${total}, ${file ?? `number ${id} of the data`}`;
  element("given").textContent = label === null ? "No given label" : `Given label: ${nameOf(label)}`;
  const digits = state.queue.classes.length > BY_DIGIT;
  element("guesses").replaceChildren(...guesses.map(([number, share], rank) => {
    const line = make("li");
    const button = make("button", nameOf(number), { type: "button", "data-class": number });
    if (digits) button.append(" ", make("kbd", String(rank + 1)));
    button.addEventListener("click", () => relabel(number));
    const bar = make("meter", "", { min: 0, max: 1, value: share, "aria-label": `${nameOf(number)}: probability` });
    line.append(button, bar, make("span", percent(share)));
    return line;
  }));
  const votes = resolving ? state.standing.disputed.find((each) => each.place === place)?.votes ?? {} : {};
  const said = Object.entries(votes).map(([name, number]) => `${name}: ${nameOf(number)}`).join("; ");
  element("votes").hidden = !said;
  element("votes").textContent = said;
  for (const button of element("classes").children) {
    button.classList.toggle("is-given", Number(button.dataset.class) === label);
  }
  setTimeout(() => { if (current === place) remind(place); }); // once the sample is on the screen
  const model = guesses.map(([number, share]) => `${nameOf(number)} ${percent(share)}`).join(", ");
  const shown = ["which", "given"].map((name) => element(name).textContent).join(". ");
  element("spoken").textContent = `${shown}. The model says ${model}. ${said}`;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;

function commit(status, verified = null) {
  if (current === null) return;
  if (resolving && verified === null) passed.add(current);
  else decide([verified === null ? { place: current, status } : { place: current, status, verified }], resolving);
  if (resolving && verified !== null) resolved.add(current);
  next();
}

export function relabel(number) {
  if (current === null) return;
  commit(number === state.queue.entries[current].label ? "ok" : "relabel", number);
}

export function keep() {
  const label = state.queue.entries[current]?.label ?? null;
  if (label === null) element("spoken").textContent = "There is no given label to keep; choose a class.";
  else commit("ok", label);
}

export const putOff = (status) => commit(status);

export function digit(number) {
  if (current === null) return;
  const { classes, entries } = state.queue;
  if (classes.length <= BY_DIGIT) {
    if (number < classes.length) relabel(number);
  } else if (number >= 1 && number <= entries[current].guesses.length) {
    relabel(entries[current].guesses[number - 1][0]);
  }
}

// A typed name: the class that is called so, or the only one that begins so.
export function typed(text) {
  const wanted = text.trim().toLowerCase();
  const names = state.queue.classes.map((name) => name.toLowerCase());
  const exact = names.indexOf(wanted);
  const near = names.flatMap((name, number) => (wanted && name.startsWith(wanted) ? [number] : []));
  const found = exact >= 0 ? exact : near.length === 1 ? near[0] : null;
  if (found === null) {
    const several = `${near.length} classes begin with ${text}; type more.`;
    element("spoken").textContent = near.length ? several : `No class is called ${text}.`;
    return false;
  }
  relabel(found);
  return true;
}

export function scale(step) {
  zoom = step === 0 ? 0 : Math.min(Math.max(zoom + step, 0), ZOOMS.length - 1);
  element("stage").dataset.zoom = zoom;
}

export function toggleReminder() {
  reminding = !reminding;
  if (current !== null) remind(current);
}

// Pictures of the classes in question: samples that one has verified as such, then those of which the model is surest.
function remind(place) {
  const { label, guesses } = state.queue.entries[place];
  const shown = reminding && !state.queue.texts;
  element("reminder").hidden = !shown;
  if (!shown) return;
  const asked = [...new Set([label, ...guesses.map(([number]) => number)])].filter((number) => number !== null);
  element("examples").replaceChildren(...asked.map((number) => {
    const figure = make("figure");
    figure.append(...examples(number, place).map(small), make("figcaption", nameOf(number)));
    return figure;
  }));
}

function examples(number, except) {
  const rank = (place) => {
    const entry = state.queue.entries[place];
    const own = state.decisions.get(place);
    if (own) return own[1] === number ? 2 : -1;
    const [best, share] = entry.guesses[0] ?? [null, 0];
    return best === number && entry.label === number ? share : -1;
  };
  const places = [...state.queue.entries.keys()].slice(0, LOOKED_AT);
  return places.filter((place) => place !== except && rank(place) > 0).sort((a, b) => rank(b) - rank(a)).slice(0, 3);
}
