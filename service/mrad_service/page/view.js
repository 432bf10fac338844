/** The picture with its map: what is drawn, and what it is called for those who cannot see it. */

import { $, count, digits } from "./dom.js";
import { drawnSize, heatCanvas, outlineOf, regionsOf } from "./heat.js";

const PLACES = [
  ["upper left", "top", "upper right"],
  ["left", "middle", "right"],
  ["lower left", "bottom", "lower right"],
];

/** The picture shown. Set the properties, then `draw`. */
export class View {
  opacity = 0.65;
  threshold = 0.5;
  outlines = true;
  /** @type {[number, number]} values of the coldest and the hottest colour */
  range = [0, 1];
  bitmap = null;
  field = null;
  regions = [];
  #heat = null;
  #heatOf = "";

  /** Show another image. `field` may be null: then the image alone is drawn. */
  async open(file, field) {
    const bitmap = await bitmapOf(file);
    this.bitmap?.close();
    this.bitmap = bitmap;
    this.field = field;
    this.#heatOf = "";
    return bitmap !== null;
  }

  setField(field) {
    this.field = field;
    this.#heatOf = "";
  }

  /** Width, height as drawn. */
  get size() {
    if (this.field) return [this.field.width, this.field.height];
    return this.bitmap ? drawnSize(this.bitmap.width, this.bitmap.height) : [640, 400];
  }

  draw(name) {
    const canvas = $("picture");
    const [width, height] = this.size;
    if (canvas.width !== width || canvas.height !== height) {
      [canvas.width, canvas.height] = [width, height];
    }
    paint(canvas.getContext("2d"), this, width, height);
    this.regions = this.field ? regionsOf(this.field, this.threshold) : [];
    const words = this.#words();
    canvas.setAttribute("aria-label", `${name}. ${words}`);
    $("caption").textContent = words;
  }

  /** The heat, drawn anew only when map or colours have changed. */
  heat() {
    const now = this.range.join();
    if (this.#heatOf !== now) {
      this.#heat = heatCanvas(this.field, ...this.range, 1);
      this.#heatOf = now;
    }
    return this.#heat;
  }

  #words() {
    if (!this.field) return "No map yet.";
    const level = digits(this.threshold);
    if (!this.regions.length) return `Nothing reaches ${level}.`;
    const { box, area } = this.regions[0];
    const share = (100 * area) / (this.field.width * this.field.height);
    const place = placeOf(box, this.field);
    const size = share < 0.1 ? "less than 0.1" : share.toFixed(1);
    return `${count(this.regions.length, "region")} at or above ${level}; the strongest at the ${place}, ${size} % of the image.`;
  }
}

function paint(context, view, width, height) {
  context.globalAlpha = 1;
  context.fillStyle = "#15161c";
  context.fillRect(0, 0, width, height);
  if (view.bitmap) context.drawImage(view.bitmap, 0, 0, width, height);
  if (!view.field) return;
  context.globalAlpha = view.opacity;
  context.drawImage(view.heat(), 0, 0);
  context.globalAlpha = 1;
  if (view.outlines) strokeOutline(context, outlineOf(view.field, view.threshold), width);
}

function strokeOutline(context, segments, width) {
  const path = new Path2D();
  for (let i = 0; i < segments.length; i += 4) {
    path.moveTo(segments[i], segments[i + 1]);
    path.lineTo(segments[i + 2], segments[i + 3]);
  }
  const thin = Math.max(1, width / 420);
  context.lineCap = "round";
  for (const [colour, thickness] of [["rgb(0 0 0 / .65)", 2.6], ["#5ff2ff", 1.2]]) {
    context.strokeStyle = colour;
    context.lineWidth = thin * thickness;
    context.stroke(path);
  }
}

/** A small canvas of an image under a map, for before and after. */
export function small(bitmap, field, range, opacity, side = 220) {
  const scale = side / Math.max(field.width, field.height);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(field.width * scale);
  canvas.height = Math.round(field.height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "#15161c";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (bitmap) context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = opacity;
  context.drawImage(heatCanvas(field, ...range, 1), 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** The upright image; null for a format that this browser cannot show. */
export async function bitmapOf(file, options = {}) {
  try {
    return await createImageBitmap(file, options);
  } catch {
    return null;
  }
}

function placeOf([x0, y0, x1, y1], { width, height }) {
  const third = (value, whole) => Math.min(2, Math.floor((3 * value) / whole));
  return PLACES[third((y0 + y1) / 2, height)][third((x0 + x1) / 2, width)];
}
