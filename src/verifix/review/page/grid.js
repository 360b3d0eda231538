// All samples of a class at once: the odd ones are marked, the labels of the others are kept.

import { small } from "/page/samples.js";
import { decide, element, make, nameOf, open, state } from "/page/state.js";

const MOST = 60; // samples of a page
let shown = [];
const odd = new Set();

const classOf = (place) => state.queue.entries[place].label;
const waiting = () => open().filter((place) => classOf(place) !== null && !state.first.includes(place));

export function begin() {
  const counts = new Map();
  for (const place of waiting()) counts.set(classOf(place), (counts.get(classOf(place)) ?? 0) + 1);
  const before = Number(element("grid-class").value);
  const classes = [...counts.keys()].sort((a, b) => a - b);
  const option = (number) => make("option", `${nameOf(number)} (${counts.get(number)})`, { value: number });
  element("grid-class").replaceChildren(...classes.map(option));
  if (classes.includes(before)) element("grid-class").value = before;
  fill();
}

export function fill() {
  const wanted = element("grid-class").value;
  shown = wanted === "" ? [] : waiting().filter((place) => classOf(place) === Number(wanted)).slice(0, MOST);
  odd.clear();
  element("cells").replaceChildren(...shown.map((place, index) => {
    const cell = make("button", "", { type: "button", "aria-pressed": "false", "data-place": place });
    cell.tabIndex = index ? -1 : 0;
    if (!state.queue.texts) cell.ariaLabel = `Sample ${place + 1}, odd`; // a text is its own name
    cell.append(small(place));
    cell.addEventListener("click", () => mark(cell));
    return cell;
  }));
  element("confirm").disabled = shown.length === 0;
  const title = shown.length ? `Which are not ${nameOf(Number(wanted))}?` : "No class has samples left";
  element("grid-title").textContent = title;
  element("grid-count").textContent = shown.length ? `${shown.length} samples` : "";
  element("spoken").textContent = `${title} ${element("grid-count").textContent}`;
  element("cells").firstElementChild?.focus({ preventScroll: true });
  element("grid").scrollIntoView(); // the question, and not only the samples
}

export function mark(cell = document.activeElement) {
  if (cell?.dataset?.place === undefined) return;
  const place = Number(cell.dataset.place);
  if (!odd.delete(place)) odd.add(place);
  cell.setAttribute("aria-pressed", String(odd.has(place)));
}

export function confirm() {
  const kept = shown.filter((place) => !odd.has(place));
  state.first = [...odd, ...state.first];
  if (kept.length) decide(kept.map((place) => ({ place, status: "ok", verified: classOf(place) })));
  const some = odd.size > 0;
  begin();
  return some;
}

export function otherClass(step) {
  const options = element("grid-class");
  if (!options.length) return;
  options.selectedIndex = (options.selectedIndex + step + options.length) % options.length;
  fill();
}

export function move(key) {
  const cells = [...element("cells").children];
  const at = cells.indexOf(document.activeElement);
  if (!cells.length) return;
  const columns = cells.filter((cell) => cell.offsetTop === cells[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const to = cells[Math.min(Math.max(at + steps[key], 0), cells.length - 1)];
  cells.forEach((cell) => { cell.tabIndex = cell === to ? 0 : -1; });
  to.focus();
}
