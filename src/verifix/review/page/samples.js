// Samples as elements, loaded before they are needed, so that they are there when a key is pressed.

import { make, state } from "/page/state.js";

const AHEAD = 8; // samples that are loaded before their turn
const KEPT = 64; // elements that stay in memory
const KEPT_SMALL = 500;
const ENLARGED = 8; // a small image is shown at most so many times as large, as what is larger is harder to recognise,
const LEAST_SHOWN = 256; // but at least with so many pixels
const loaded = new Map(); // place -> {element, ready}
const smalls = new Map(); // place -> element

function load(place) {
  const found = loaded.get(place);
  if (found) {
    loaded.delete(place); // it is now the one that was used last
    loaded.set(place, found);
    return found;
  }
  const entry = { element: null, ready: null, done: false };
  entry.ready = (state.queue.texts ? text(place) : image(place))
    .then((element) => { entry.element = element; entry.done = true; return element; })
    .catch(() => {
      loaded.delete(place);
      return make("p", "This sample cannot be shown. Skip it, or try again.", { class: "waiting" });
    });
  loaded.set(place, entry);
  for (const old of loaded.keys()) {
    if (loaded.size <= KEPT) break;
    loaded.delete(old);
  }
  return entry;
}

async function image(place) {
  const shown = new Image();
  shown.alt = `Sample ${place + 1}`;
  shown.src = `/sample/${place}`;
  await shown.decode();
  const side = Math.max(shown.naturalWidth, shown.naturalHeight);
  shown.style.setProperty("--most", `${Math.max(ENLARGED * side, LEAST_SHOWN)}px`);
  return shown;
}

async function text(place) {
  const answer = await fetch(`/sample/${place}`);
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return make("div", await answer.text(), { class: "text", dir: "auto" });
}

// Return the element if it is loaded, else call back when it is.
export function show(place, call) {
  const entry = load(place);
  if (entry.done) return call(entry.element);
  entry.ready.then(call);
  return call(null);
}

export const ahead = (places) => places.slice(0, AHEAD).forEach(load);

// A small picture of a sample, to be shown in one place at a time.
export function small(place) {
  const made = smalls.get(place) ?? (state.queue.texts ? snippet(place) : thumbnail(place));
  smalls.delete(place); // so that it is the last one again
  smalls.set(place, made);
  if (smalls.size > KEPT_SMALL) smalls.delete(smalls.keys().next().value);
  return made;
}

function thumbnail(place) {
  return make("img", "", { src: `/small/${place}`, alt: `Sample ${place + 1}`, loading: "lazy" });
}

function snippet(place) {
  const shown = make("span", "", { class: "snippet", dir: "auto" });
  show(place, (element) => { if (element) shown.textContent = element.textContent.slice(0, 200); });
  return shown;
}
