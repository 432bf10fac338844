/** The images: what waits, what runs, what was found. */

import { Problem, score } from "./api.js";
import { fieldOf, rangeOf } from "./heat.js";
import { decodePng16, fromBase64 } from "./png16.js";

const AT_ONCE = 2;
/** Bytes of compressed maps that are kept; older ones are asked for again when looked at. */
const MAP_BYTES = 256 << 20;
const BLOCKING = new Set([401, 403, 503]);

/** One image. `state` is waiting, running, done or failed. */
export class Item {
  static made = 0;

  constructor(file) {
    this.id = ++Item.made;
    this.file = file;
    this.name = file.webkitRelativePath || file.name || "pasted image";
    this.state = "waiting";
    this.result = null;
    this.problem = null;
    this.png = null;
    this.range = null;
    /** What alone is judged: {size, polygons}; null for all of it. */
    this.region = null;
    /** Of whose images alone it was judged; "" for all. */
    this.product = "";
    /** Why its verdict does not hold any more, as "before the last lesson"; "" while it does. */
    this.stale = "";
    /** The queue's `epoch` when it was asked about. */
    this.epoch = 0;
    /** How often it was asked about: the last answer counts, in whatever order they come. */
    this.asked = 0;
  }

  /** The map, at the size it is drawn; null when it has to be asked for again. */
  async field() {
    return this.png && fieldOf(await decodePng16(this.png));
  }
}

/**
 * Judges items, two at a time, in the order they came. Events: `change` (detail: the item),
 * `blocked` (detail: the problem that stops everything), `busy` (detail: seconds to wait).
 */
export class Queue extends EventTarget {
  items = [];
  /** Of whose images alone images are judged from now on; "" for all. */
  product = "";
  /** How often the memory has changed, and how: answers to earlier questions are outdated. */
  epoch = 0;
  why = "";
  #running = 0;
  #blocked = false;
  #waitUntil = 0;

  add(files) {
    const added = files.map((file) => new Item(file));
    this.items.push(...added);
    added.forEach((item) => this.#tell("change", item));
    this.#pump();
    return added;
  }

  /** Judge again: these items, first of all. */
  again(items) {
    for (const item of items) {
      if (item.state !== "running") this.#set(item, "waiting");
    }
    this.#pump(items);
  }

  /** Judge one item now; resolves when it is done or failed. Never rejects. */
  async now(item) {
    await this.#judge(item);
    this.#pump([item]); // it waits again where another product was chosen meanwhile
  }

  /** Go on after what blocked it is gone. */
  resume() {
    this.#blocked = false;
    this.#waitUntil = 0;
    this.#pump();
  }

  get left() {
    return this.items.filter((item) => item.state === "waiting" || item.state === "running").length;
  }

  #pump(first = []) {
    const waiting = (item) => item.state === "waiting";
    while (!this.#blocked && this.#running < AT_ONCE) {
      const item = first.find(waiting) ?? this.items.find(waiting);
      if (!item) return;
      const pause = this.#waitUntil - Date.now();
      if (pause > 0) {
        setTimeout(() => this.#pump(), pause + 20);
        return;
      }
      this.#running += 1;
      this.#judge(item).finally(() => {
        this.#running -= 1;
        this.#pump(first);
      });
    }
  }

  async #judge(item) {
    this.#set(item, "running");
    const { product, epoch } = this;
    const asked = ++item.asked;
    try {
      const result = await score(item.file, item.region, product);
      if (asked !== item.asked) return;
      if (product !== this.product) { // another was chosen meanwhile
        this.#set(item, "waiting");
        return;
      }
      item.png = fromBase64(result.map.data);
      item.range = rangeOf(await item.field());
      if (asked !== item.asked) return;
      delete result.map;
      item.result = result;
      item.problem = null;
      item.product = product;
      item.epoch = epoch;
      item.stale = epoch === this.epoch ? "" : this.why;
      this.#set(item, "done");
      this.#forgetOldMaps(item);
    } catch (problem) {
      if (asked === item.asked) this.#failed(item, problem);
    }
  }

  #failed(item, problem) {
    if (problem.status === 429 || (problem.status === 503 && problem.retryAfter)) {
      const seconds = problem.retryAfter ?? 2;
      this.#waitUntil = Math.max(this.#waitUntil, Date.now() + seconds * 1000);
      this.#set(item, "waiting");
      this.#tell("busy", seconds);
      setTimeout(() => this.#pump(), seconds * 1000 + 20);
    } else if (problem.code === "away" || BLOCKING.has(problem.status)) {
      this.#blocked = true;
      this.#set(item, "waiting");
      this.#tell("blocked", problem);
    } else {
      if (!(problem instanceof Problem)) console.error(problem);
      item.problem = problem;
      this.#set(item, "failed");
    }
  }

  #forgetOldMaps(newest) {
    let bytes = 0;
    for (const item of this.items) bytes += item.png?.length ?? 0;
    for (const item of this.items) {
      if (bytes <= MAP_BYTES) return;
      if (item === newest || !item.png) continue;
      bytes -= item.png.length;
      item.png = null;
    }
  }

  #set(item, state) {
    item.state = state;
    this.#tell("change", item);
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** Smallest and largest map value of everything judged; null before the first. */
export function sharedRange(items) {
  const ranges = items.map((item) => item.range).filter(Boolean);
  if (!ranges.length) return null;
  return [Math.min(...ranges.map((r) => r[0])), Math.max(...ranges.map((r) => r[1]))];
}
