/** The list of images: one button each, with a thumbnail and what was found. */

import { $, el, readable } from "./dom.js";
import { bitmapOf } from "./view.js";

const THUMB = 56;
const rows = new Map();

/** Bring an item's row up to date, adding it when it is new. `open(item)` is called on a click. */
export function showRow(item, selected, open) {
  let row = rows.get(item.id);
  if (!row) {
    row = makeRow(item, open);
    rows.set(item.id, row);
    $("queue").append(row.li);
  }
  const { words, kind } = told(item);
  row.li.dataset.kind = kind;
  row.note.textContent = words;
  row.button.setAttribute("aria-label", `${item.name}: ${words}`);
  if (selected) row.button.setAttribute("aria-current", "true");
  else row.button.removeAttribute("aria-current");
  if (item.state !== "waiting" && !row.pictured) {
    row.pictured = true;
    picture(item, row.canvas);
  }
}

function told(item) {
  if (item.state === "waiting") return { words: "waiting", kind: "waiting" };
  if (item.state === "running") return { words: "judging…", kind: "running" };
  if (item.state === "failed") return { words: "not judged", kind: "failed" };
  const { verdict } = item.result;
  const again = item.stale ? ` · ${item.stale}` : "";
  const doubt = item.result.warnings?.length ? " · doubtful picture" : "";
  const words = `${verdict ? `${verdict} · ` : ""}${readable(item.result)}${doubt}${again}`;
  return { words, kind: item.stale ? "stale" : (verdict ?? "done") };
}

function makeRow(item, open) {
  const canvas = el("canvas", { width: THUMB, height: THUMB });
  canvas.setAttribute("aria-hidden", "true");
  const note = el("span", { className: "note" });
  const short = item.name.split("/").pop();
  const name = el("span", { className: "name", title: item.name }, short);
  const button = el("button", { type: "button" }, canvas, el("span", { className: "words" }, name, note));
  button.addEventListener("click", () => open(item));
  button.addEventListener("keydown", walk);
  return { li: el("li", {}, button), button, canvas, note, pictured: false };
}

/** Arrow keys move through the list. */
function walk(event) {
  const li = event.currentTarget.parentElement;
  const next = { ArrowDown: li.nextElementSibling, ArrowUp: li.previousElementSibling }[event.key];
  if (!next) return;
  event.preventDefault();
  next.firstElementChild.focus();
}

async function picture(item, canvas) {
  const bitmap = await bitmapOf(item.file);
  if (!bitmap) return;
  const side = Math.min(bitmap.width, bitmap.height);
  const [x, y] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, x, y, side, side, 0, 0, THUMB, THUMB);
  bitmap.close();
}
