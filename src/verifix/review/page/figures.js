// What the labels show so far, in words.

import { element, get, make, state, unsaved } from "/page/state.js";

const PAUSE = 120_000; // milliseconds after which somebody has done something else
const RECENT = 40; // decisions that the pace is measured on
const times = [];

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const counted = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
const points = (share) => `${share >= 0 ? "+" : "−"}${Math.abs(100 * share).toFixed(1)}`;

export function tick(count) {
  times.push([performance.now(), count]);
  if (times.length > RECENT) times.shift();
}

function pace() {
  let [seconds, count] = [0, 0];
  for (let i = 1; i < times.length; i++) {
    const taken = times[i][0] - times[i - 1][0];
    if (taken > PAUSE) continue;
    seconds += taken / 1000;
    count += times[i][1];
  }
  return count ? seconds / count : null;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export function progress() {
  const total = state.queue.entries.length;
  const isDone = (place) => state.decisions.has(place) || (state.onlyOpen && state.others.has(place));
  const done = [...Array(total).keys()].filter(isDone).length;
  const each = pace();
  element("progress").max = total;
  element("progress").value = done;
  const saving = unsaved() ? `, saving ${unsaved()}` : "";
  const left = each && done < total ? `, about ${duration(each * (total - done))} left` : "";
  element("far").textContent = `${done} of ${total} decided${left}${saving}`;
  element("pace").textContent = each ? `${(60 / each).toFixed(0)} a minute.` : "It is shown after two decisions.";
}

export async function refresh() {
  state.standing = await get("/standing");
  const { rate, gain, agreement, disputed } = state.standing;
  element("disputes").textContent = disputed.length;
  element("rate").textContent = rate
    ? `${percent(rate.estimate)} of the given labels (${percent(rate.low)} to ${percent(rate.high)}), from ${counted(rate.count, "random sample")} `
      + "in turn. The interval holds at every look."
    : "Unknown until a sample of the random part with a given label is decided.";
  element("gain").textContent = gainText(gain);
  element("agreement").replaceChildren(...agreement.pairs.map(({ people, samples, equal, kappa }) => make(
    "li", `${people.join(" and ")}: ${equal} of ${samples} labels equal, Cohen's kappa ${kappa?.toFixed(2) ?? "undefined"}`,
  )));
  if (agreement.pairs.length) return;
  element("agreement").replaceChildren(make("li", "Nobody else has labelled the same samples."));
}

// Random samples are mixed with others in the queue, so that it takes more labels than random samples.
function labels(random) {
  const share = state.queue.random / state.queue.entries.length;
  return `${Math.ceil(random / share)} more labels (${random} of them of random samples)`;
}

function gainText(gain) {
  if (!gain) return "Not measured: start verifix review with the model (--model) to see it.";
  const running = gain.running ? " A correction is being made." : "";
  const work = gain.failed ? ` The last correction failed: ${gain.failed}.` : running;
  if (!gain.bounds.count) {
    return (gain.looks ? "The next random samples will judge it." : "The first correction is made after 50 labels.") + work;
  }
  const { estimate, low, high, count } = gain.bounds;
  const verdicts = {
    improved: "The corrections improve the model; you may stop.",
    harmful: "The corrections harm the model.",
    undecided: gain.more === null
      ? "It is not decided; the samples so far do not point in a direction."
      : `It is not decided; about ${labels(gain.more)} would decide it if the trend holds.`,
  };
  return [
    `${points(estimate)} points (${points(low)} to ${points(high)}) on ${counted(count, "random sample")}:`,
    `${gain.fixed} set right, ${gain.broken} broken.`,
    verdicts[gain.verdict],
    `The last correction was made from ${gain.labels} labels.${work}`,
  ].join(" ");
}
