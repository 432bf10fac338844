/** Painting a rough mask over the picture, with pointer or keyboard. */

import { $, announce } from "./dom.js";

const COLOUR = "#00e5ff";

/** The mask being painted. It is a list of strokes, so that each can be undone. */
export class Brush {
  #strokes = [];
  #pen = null;
  #cursor = [0, 0];
  #onchange;

  /** `onchange()` is called after each change. */
  constructor(onchange) {
    this.#onchange = onchange;
    this.canvas = $("brush");
    this.canvas.addEventListener("pointerdown", (event) => this.#down(event));
    this.canvas.addEventListener("pointermove", (event) => this.#move(event));
    this.canvas.addEventListener("pointerup", () => this.#up());
    this.canvas.addEventListener("pointercancel", () => this.#up());
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("blur", () => this.#up());
    $("size").addEventListener("input", () => this.#ring());
  }

  get empty() {
    return !this.#strokes.length;
  }

  /** Begin on a picture of this size (as drawn). */
  open([width, height]) {
    [this.canvas.width, this.canvas.height] = [width, height];
    this.#cursor = [width / 2, height / 2];
    this.#strokes = [];
    this.canvas.hidden = false;
    this.canvas.focus({ preventScroll: true });
    this.#changed();
  }

  close() {
    this.#pen = null;
    this.canvas.hidden = true;
    $("ring")?.remove();
  }

  undo() {
    this.#strokes.pop();
    this.#changed();
  }

  clear() {
    this.#strokes = [];
    this.#changed();
  }

  /** Mark everything at or above a threshold. */
  addRegions(field, threshold) {
    this.#strokes.push({ field, threshold });
    this.#changed();
  }

  /** The mask as a PNG of `width` x `height`: white where marked. Null when nothing is. */
  async png(width, height) {
    if (this.empty) return null;
    const full = document.createElement("canvas");
    [full.width, full.height] = [width, height];
    const context = full.getContext("2d");
    context.drawImage(this.canvas, 0, 0, width, height);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    return new Promise((resolve) => full.toBlob(resolve, "image/png"));
  }

  /** Radius in drawn pixels: the slider speaks of pixels on a picture 1000 wide. */
  get #radius() {
    const longest = Math.max(this.canvas.width, this.canvas.height);
    return Math.max(1, (Number($("size").value) * longest) / 2000);
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) * this.canvas.width) / box.width;
    const y = ((event.clientY - box.top) * this.canvas.height) / box.height;
    return [x, y];
  }

  #down(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.#begin(this.#place(event));
  }

  #move(event) {
    this.#cursor = this.#place(event);
    if (this.#pen) this.#extend();
    this.#ring();
  }

  #up() {
    if (!this.#pen) return;
    this.#pen = null;
    this.#onchange();
  }

  #begin(point) {
    this.#cursor = point;
    this.#pen = { points: [point], radius: this.#radius };
    this.#strokes.push(this.#pen);
    stroke(this.canvas.getContext("2d"), this.#pen);
    this.#onchange();
  }

  #extend() {
    this.#pen.points.push(this.#cursor);
    stroke(this.canvas.getContext("2d"), { ...this.#pen, points: this.#pen.points.slice(-2) });
  }

  #key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (step) {
      const far = this.#radius * (event.shiftKey ? 3 : 0.75);
      const limits = [this.canvas.width, this.canvas.height];
      this.#cursor = this.#cursor.map((at, i) =>
        Math.min(limits[i], Math.max(0, at + step[i] * far)),
      );
      if (this.#pen) this.#extend();
    } else if (event.key === " ") {
      if (this.#pen) this.#up();
      else this.#begin(this.#cursor);
      announce(this.#pen ? "Painting" : "Not painting");
    } else if (event.key === "+" || event.key === "-") {
      $("size").stepUp(event.key === "+" ? 8 : -8);
    } else return;
    event.preventDefault();
    this.#ring();
  }

  #changed() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const one of this.#strokes) {
      if (one.field) fill(context, one);
      else stroke(context, one);
    }
    this.#ring();
    this.#onchange();
  }

  /** Show where the brush is and how large. */
  #ring() {
    if (this.canvas.hidden) return;
    let ring = $("ring");
    if (!ring) {
      ring = document.createElement("span");
      ring.id = "ring";
      this.canvas.after(ring);
    }
    const scale = this.canvas.clientWidth / this.canvas.width;
    const side = 2 * this.#radius * scale;
    const corner = [this.canvas.offsetLeft, this.canvas.offsetTop];
    const [x, y] = this.#cursor.map((at, i) => corner[i] + at * scale - side / 2);
    Object.assign(ring.style, {
      width: `${side}px`,
      height: `${side}px`,
      transform: `translate(${x}px, ${y}px)`,
    });
  }
}

function stroke(context, { points, radius }) {
  context.strokeStyle = COLOUR;
  context.lineWidth = 2 * radius;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...points[0]);
  for (const point of points) context.lineTo(...point);
  context.stroke();
}

function fill(context, { field, threshold }) {
  const layer = document.createElement("canvas");
  [layer.width, layer.height] = [field.width, field.height];
  const inner = layer.getContext("2d");
  const image = inner.createImageData(field.width, field.height);
  field.values.forEach((value, i) => {
    if (value >= threshold) image.data.set([0, 229, 255, 255], 4 * i);
  });
  inner.putImageData(image, 0, 0);
  context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
}
