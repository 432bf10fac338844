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
  /** Whether the image could not be judged: no map will come. */
  failed = false;
  regions = [];
  /** What part of the picture is seen: drawn pixels times `scale`, then moved. */
  zoom = { scale: 1, left: 0, top: 0 };
  /** Boxes of tiles and of named parts, and corners of the region judged; pixels of the image. */
  tiles = [];
  /** Of the tiles those that were looked at closely, and those that were not: these are darkened. */
  seen = [];
  unseen = [];
  parts = [];
  region = null;
  /** Box of an anomalous image's strongest place, pixels of the image: framed where nothing is outlined. */
  strongest = null;
  /** Corners of a region that is being drawn, drawn pixels. */
  drawing = null;
  #heat = null;
  #heatOf = "";
  #outline = null;
  #outlineOf = "";
  #waiting = 0;

  /** Show another image. `field` may be null: then the image alone is drawn. */
  async open(file, field) {
    const bitmap = await bitmapOf(file);
    this.bitmap?.close();
    this.bitmap = bitmap;
    this.setField(field);
    return bitmap !== null;
  }

  setField(field) {
    this.field = field;
    this.#heatOf = this.#outlineOf = "";
  }

  /** See all of it. */
  fit() {
    this.zoom = { scale: 1, left: 0, top: 0 };
  }

  /** Look at another part; the picture always fills the frame. */
  moveTo({ scale, left, top }) {
    const [width, height] = this.size;
    const within = (value, length) => Math.min(0, Math.max(length * (1 - scale), value));
    this.zoom = { scale, left: within(left, width), top: within(top, height) };
  }

  /** Paint again what has moved, once a frame; nothing is measured again. */
  repaint() {
    this.#waiting ||= requestAnimationFrame(() => {
      this.#waiting = 0;
      const [width, height] = this.size;
      paint($("picture").getContext("2d"), this, width, height);
    });
  }

  /** The outline, traced only when map or threshold have changed. */
  outline() {
    const now = `${this.threshold}`;
    if (this.#outlineOf !== now) {
      this.#outline = pathOf(outlineOf(this.field, this.threshold));
      this.#outlineOf = now;
    }
    return this.#outline;
  }

  /** Drawn pixels for one of the image. */
  get drawnPerPixel() {
    const full = this.field?.full ?? (this.bitmap ? [this.bitmap.width] : this.size);
    return this.size[0] / full[0];
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
    this.regions = this.field ? regionsOf(this.field, this.threshold) : [];
    paint(canvas.getContext("2d"), this, width, height);
    const words = this.#words();
    canvas.setAttribute("aria-label", `${name}. ${words}`);
    $("caption").textContent = words;
  }

  /** The heat, drawn again only when map or colours have changed. */
  heat() {
    const now = this.range.join();
    if (this.#heatOf !== now) {
      this.#heat = heatCanvas(this.field, ...this.range, 1);
      this.#heatOf = now;
    }
    return this.#heat;
  }

  #words() {
    if (!this.field) return this.failed ? "No map: the image was not judged." : "No map yet.";
    const level = digits(this.threshold);
    if (!this.regions.length) {
      if (!this.strongest) return `Nothing reaches ${level}.`;
      const [x0, y0, x1, y1] = this.strongest;
      const at = `${Math.floor((x0 + x1) / 2)}, ${Math.floor((y0 + y1) / 2)}`;
      return `Nothing reaches ${level}, so nothing is outlined; the strongest place, at ${at}, is framed.`;
    }
    const { box, area } = this.regions[0];
    const share = (100 * area) / (this.field.width * this.field.height);
    const place = placeOf(box, this.field);
    const size = share < 0.1 ? "less than 0.1" : share.toFixed(1);
    return `${count(this.regions.length, "region")} at or above ${level}; the strongest at the ${place}, ${size} % of the image.`;
  }
}

function paint(context, view, width, height) {
  const { scale, left, top } = view.zoom;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.globalAlpha = 1;
  context.fillStyle = "#15161c";
  context.fillRect(0, 0, width, height);
  context.setTransform(scale, 0, 0, scale, left, top);
  if (view.bitmap) context.drawImage(view.bitmap, 0, 0, width, height);
  const thin = Math.max(1, width / 420) / scale;
  if (view.field) {
    context.globalAlpha = view.opacity;
    context.drawImage(view.heat(), 0, 0);
    context.globalAlpha = 1;
    if (view.outlines) stroke(context, view.outline(), thin, "#5ff2ff");
  }
  if (view.unseen.length) context.drawImage(veil(view, width, height), 0, 0);
  strokeBoxes(context, view, thin);
}

/** Darkness over what no tile showed closely. */
function veil(view, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const drawn = view.drawnPerPixel;
  const box = ([x0, y0, x1, y1]) => [x0 * drawn, y0 * drawn, (x1 - x0) * drawn, (y1 - y0) * drawn];
  context.fillStyle = "rgb(0 0 0 / .66)";
  const all = new Path2D();
  for (const tile of view.unseen) all.rect(...box(tile));
  context.fill(all);
  for (const tile of view.seen) context.clearRect(...box(tile));
  return canvas;
}

/** Tiles, named parts, and the region that is judged or being drawn. */
function strokeBoxes(context, view, thin) {
  const drawn = view.drawnPerPixel;
  const boxes = new Path2D();
  for (const [x0, y0, x1, y1] of view.tiles) {
    boxes.rect(x0 * drawn, y0 * drawn, (x1 - x0) * drawn, (y1 - y0) * drawn);
  }
  context.setLineDash([4 * thin, 3 * thin]);
  if (view.tiles.length) stroke(context, boxes, thin * 0.6, "rgb(255 255 255 / .75)");
  context.setLineDash([]);
  for (const { box, name } of view.parts) named(context, box, drawn, thin, name, "#8dff7a");
  if (view.strongest && view.field && !view.regions.length) {
    named(context, view.strongest, drawn, thin, "strongest place", "#5ff2ff", true);
  }
  const corners = view.drawing ?? view.region?.map(([x, y]) => [x * drawn, y * drawn]);
  if (!corners?.length) return;
  const path = new Path2D();
  corners.forEach(([x, y]) => path.lineTo(x, y));
  if (!view.drawing) path.closePath();
  for (const [x, y] of view.drawing ?? []) path.rect(x - 2 * thin, y - 2 * thin, 4 * thin, 4 * thin);
  stroke(context, path, thin, "#ffd23f");
}

/** A box in pixels of the image with its name in it, or above it. */
function named(context, [x0, y0, x1, y1], drawn, thin, name, colour, above = false) {
  const path = new Path2D();
  path.rect(x0 * drawn, y0 * drawn, (x1 - x0) * drawn, (y1 - y0) * drawn);
  stroke(context, path, thin, colour);
  context.font = `${14 * thin}px system-ui`;
  context.fillStyle = colour;
  const over = above && y0 * drawn > 18 * thin;
  context.fillText(name, x0 * drawn + 4 * thin, y0 * drawn + (over ? -4 : 16) * thin);
}

function pathOf(segments) {
  const path = new Path2D();
  for (let i = 0; i < segments.length; i += 4) {
    path.moveTo(segments[i], segments[i + 1]);
    path.lineTo(segments[i + 2], segments[i + 3]);
  }
  return path;
}

function stroke(context, path, thin, colour) {
  context.lineCap = "round";
  for (const [ink, thickness] of [["rgb(0 0 0 / .65)", 2.6], [colour, 1.2]]) {
    context.strokeStyle = ink;
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
