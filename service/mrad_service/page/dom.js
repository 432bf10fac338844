/** Small helpers around the document. */

/** @param {string} id @returns {HTMLElement} */
export const $ = (id) => document.getElementById(id);

/** An element: `el("p", {className: "hint"}, "text", other)`. Text is never read as HTML. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Show or hide. */
export const show = (element, on) => {
  element.hidden = !on;
};

/** Say something to those who cannot see it happen. */
export function announce(text) {
  $("announce").textContent = text;
}

/** A raw score. Four digits: scores of an untrained head differ in the third. */
export const digits = (value) => value.toFixed(4);

/** What people read of a result: 0 to 100 with the limit at 50; the raw score without a calibration. */
export const readable = (result) =>
  result.calibrated_score == null ? digits(result.score) : `${whole(result.calibrated_score)}`;

/** Rounded, but never up to the limit of 50: "normal · 50" would contradict itself. */
const whole = (value) => (value < 50 ? Math.min(Math.round(value), 49) : Math.round(value));

/** "1 image", "2 images". */
export const count = (n, noun) => `${n.toLocaleString()} ${noun}${n === 1 ? "" : "s"}`;
