/** Looking nearer at a picture, moving it, and marking the region that alone is to be judged. */

import { $, announce, show } from "./dom.js";

const NEAREST = 60;
const STEP = 1.25;

/** Acts on the canvas `picture`; what is seen is the view's `zoom`. */
export class Look {
  #view;
  #redraw;
  #onregion;
  #held = null;
  #points = null;

  /** `redraw()` paints again; `onregion(points)`: corners in drawn pixels, null for all of the picture. */
  constructor(view, redraw, onregion) {
    this.#view = view;
    this.#redraw = redraw;
    this.#onregion = onregion;
    const canvas = $("picture");
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", () => (this.#held = null));
    canvas.addEventListener("pointercancel", () => (this.#held = null));
    canvas.addEventListener("dblclick", () => (this.#points ? this.#finish() : this.fit()));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    $("nearer").addEventListener("click", () => this.#scale(2));
    $("farther").addEventListener("click", () => this.#scale(1 / 2));
    $("fit").addEventListener("click", () => this.fit());
    $("region").addEventListener("click", () => (this.#points ? this.#finish() : this.#begin()));
    $("region-off").addEventListener("click", () => this.#end(null));
  }

  /** Another picture is shown: all of it, and no region half drawn. */
  open(region) {
    this.#stop();
    show($("region-off"), Boolean(region));
    this.fit();
  }

  fit() {
    this.#view.fit();
    this.#redraw();
  }

  #begin() {
    this.#points = [];
    this.#view.drawing = this.#points;
    $("region").textContent = "Judge this region";
    show($("region-off"), true);
    announce("Click the corners of the region, then double-click or press Enter; Escape ends it.");
    $("look-hint").textContent = "Click the corners of the region; double-click or Enter ends it, Escape drops it.";
    $("picture").focus({ preventScroll: true });
    this.#redraw();
  }

  #finish() {
    const points = this.#points.filter(
      (at, i, all) => !i || Math.hypot(at[0] - all[i - 1][0], at[1] - all[i - 1][1]) > 1,
    );
    if (points.length < 3) {
      $("look-hint").textContent = "A region needs three corners or more.";
      return;
    }
    this.#end(points);
  }

  #end(points) {
    const drawing = this.#points !== null;
    this.#stop();
    if (points || !drawing) this.#onregion(points);
    this.#redraw();
  }

  #stop() {
    this.#points = this.#view.drawing = null;
    $("region").textContent = "Judge a region only";
    $("look-hint").textContent = "";
    show($("region-off"), Boolean(this.#view.region));
  }

  /** Where the pointer is, in drawn pixels of the unmoved picture, and on the canvas. */
  #at(event) {
    const canvas = $("picture");
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) * canvas.width) / box.width;
    const y = ((event.clientY - box.top) * canvas.height) / box.height;
    const { scale, left, top } = this.#view.zoom;
    return { canvas: [x, y], picture: [(x - left) / scale, (y - top) / scale] };
  }

  #wheel(event) {
    event.preventDefault();
    this.#scale(event.deltaY < 0 ? STEP : 1 / STEP, this.#at(event).canvas);
  }

  #scale(times, about = null) {
    const { zoom, size } = this.#view;
    const [x, y] = about ?? [size[0] / 2, size[1] / 2];
    const scale = Math.min(NEAREST, Math.max(1, zoom.scale * times));
    const grown = scale / zoom.scale;
    this.#view.moveTo({ scale, left: x - (x - zoom.left) * grown, top: y - (y - zoom.top) * grown });
    this.#redraw();
  }

  #down(event) {
    const at = this.#at(event);
    if (this.#points) {
      this.#points.push(at.picture);
      this.#redraw();
      return;
    }
    if (this.#view.zoom.scale === 1) return;
    this.#held = { at: at.canvas, zoom: { ...this.#view.zoom } };
    $("picture").setPointerCapture(event.pointerId);
  }

  #move(event) {
    if (!this.#held) return;
    const { canvas } = this.#at(event);
    const { at, zoom } = this.#held;
    this.#view.moveTo({ ...zoom, left: zoom.left + canvas[0] - at[0], top: zoom.top + canvas[1] - at[1] });
    this.#redraw();
  }

  #key(event) {
    const { zoom, size } = this.#view;
    const far = size[0] / 10;
    const moves = { ArrowLeft: [far, 0], ArrowRight: [-far, 0], ArrowUp: [0, far], ArrowDown: [0, -far] };
    const acts = { "+": () => this.#scale(2), "-": () => this.#scale(1 / 2), 0: () => this.fit() };
    if (this.#points) {
      acts.Enter = () => this.#finish();
      acts.Escape = () => this.#end(null);
      acts.Backspace = () => this.#points.pop();
    }
    if (moves[event.key]) {
      const [x, y] = moves[event.key];
      this.#view.moveTo({ ...zoom, left: zoom.left + x, top: zoom.top + y });
    } else if (acts[event.key]) acts[event.key]();
    else return;
    event.preventDefault();
    this.#redraw();
  }
}
