/** "This is fine", "this is a defect": teaching, seeing what it changed, and undoing it. */

import { Problem, forget, newAttempt, teach } from "./api.js";
import { Brush } from "./brush.js";
import { $, announce, show } from "./dom.js";
import { showChange, showLessons } from "./panels.js";
import { small } from "./view.js";

const WORDS = {
  forbidden: "This key may look but not teach: it needs the scope “write”.",
  unauthenticated: "The server wants a key: use the button “API key”.",
  read_only: "This server does not learn: it is a read-only copy.",
  one_class_memory: "That is the memory's last image of its kind, so it has to stay.",
  away: "The server cannot be reached. Nothing was taught; try again.",
};

/** The teaching card. `page` gives view, queue, current(), refresh(item), taught(item), learned(pending), product(). */
export class Teacher {
  #lessons = [];
  #page;
  #brush;
  #writable = true;
  #sending = false;
  #attempt = null; // kept over retries of one lesson, so that it is learned once

  constructor(page) {
    this.#page = page;
    this.#brush = new Brush(() => this.#hint());
    $("fine").addEventListener("click", () => this.#send("normal"));
    $("defect").addEventListener("click", () => this.#mark());
    $("cancel").addEventListener("click", () => {
      this.cancel();
      $("defect").focus();
    });
    $("teach-mark").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send("anomalous");
    });
    $("kind").addEventListener("input", () => {
      this.#attempt = null;
    });
    $("unpaint").addEventListener("click", () => this.#brush.undo());
    $("wipe").addEventListener("click", () => this.#brush.clear());
    $("from-regions").addEventListener("click", () => {
      const { field, threshold, regions } = page.view;
      if (!regions.length) this.#say("No region is outlined: lower the map threshold first.");
      else this.#brush.addRegions(field, threshold);
    });
  }

  /** Whether the server learns at all. */
  allow(writable) {
    if (writable === this.#writable) return;
    this.#writable = writable;
    this.cancel();
  }

  /** An item has come into view, or has changed. */
  open(item) {
    const ready = item.state === "done" && !this.#sending;
    $("fine").disabled = $("defect").disabled = !ready;
    $("defect").setAttribute("aria-expanded", String(!$("teach-mark").hidden));
  }

  /** Leave the painting. */
  cancel() {
    this.#brush.close();
    show($("teach-mark"), false);
    show($("teach-ask"), this.#writable);
    this.#attempt = null;
    this.#say(this.#writable ? "" : WORDS.read_only);
  }

  #mark() {
    show($("teach-mark"), true);
    show($("teach-ask"), false);
    this.#page.view.fit(); // strokes lie on all of the picture
    this.#page.view.repaint();
    this.#brush.open(this.#page.view.size);
    announce("Mark the defect");
  }

  /** The mask has changed: what is sent next is another lesson. */
  #hint() {
    this.#attempt = null;
    $("mark-hint").textContent = this.#brush.empty
      ? "Nothing is marked yet. Taught so, only the image as a whole is learned, not the place."
      : "Marked places are learned as a defect, the rest of the image as good.";
  }

  /** `item`: of what it is said, where another may be in view by now. */
  #say(text, item = null) {
    const whose = item && item !== this.#page.current() ? `${item.name}: ` : "";
    $("teach-note").textContent = whose + text;
  }

  async #send(label) {
    const item = this.#page.current();
    const defect = label === "anomalous" ? $("kind").value.trim() : "";
    this.#attempt ??= newAttempt();
    this.#busy(true);
    this.#say("Teaching…");
    try {
      const mask = label === "anomalous" ? await this.#mask(item) : null;
      const options = { mask, defect, product: this.#page.product(), attempt: this.#attempt };
      const { entry, note, warnings = [], effect } = await teach(item.file, label, options);
      this.#lessons.unshift({ item, label, defect, entryId: entry.entry_id, busy: false });
      if (item === this.#page.current()) this.cancel();
      const learned = label === "normal" ? "Learned as fine" : "Learned as a defect";
      await this.#compare(item, learned, effect);
      const doubts = warnings.map((text) => text.replace(/^[a-z_]+: /, ""));
      if (note) doubts.unshift(note);
      if (doubts.length) this.#say(`${learned}, but ${doubts.join("; ")}.`, item);
    } catch (problem) {
      this.#failed(problem, item);
    } finally {
      this.#busy(false);
    }
  }

  /** The mask has the upright image's own size, which the map shares. */
  async #mask(item) {
    const field = await item.field();
    return this.#brush.png(...(field?.full ?? this.#page.view.size));
  }

  async #undo(lesson) {
    lesson.busy = true;
    this.#list();
    try {
      const effect = await forget(lesson.entryId);
      this.#lessons = this.#lessons.filter((other) => other !== lesson);
      await this.#compare(lesson.item, "Forgotten", effect);
    } catch (problem) {
      this.#failed(problem, lesson.item);
    }
    lesson.busy = false;
    this.#list();
  }

  /** Judge again, and show before beside after if the image is still looked at. */
  async #compare(item, title, effect) {
    const { view, queue, current, refresh, taught, learned } = this.#page;
    const before = item.result;
    const fieldBefore = await item.field();
    this.#list();
    taught(item);
    await queue.now(item);
    await learned(effect?.thresholds === "pending");
    if (item !== current()) this.#say(`${title}.`, item);
    if (item !== current() || item.state !== "done") return;
    await refresh(item);
    const fields = [fieldBefore, view.field];
    const pictures = fields.map(
      (field) => field && small(view.bitmap, field, view.range, view.opacity),
    );
    showChange({ title, before, after: item.result, pictures, effect, product: this.#page.product() });
    this.#say(title + ".");
  }

  #list() {
    showLessons(this.#lessons, (lesson) => this.#undo(lesson));
  }

  #busy(on) {
    this.#sending = on;
    for (const id of ["fine", "defect", "cancel"]) $(id).disabled = on;
    $("teach-mark").querySelector("[type=submit]").disabled = on;
    if (!on) this.open(this.#page.current());
  }

  #failed(problem, item) {
    if (!(problem instanceof Problem)) console.error(problem);
    if (problem.status === 429) {
      this.#say(`The server is busy. Try again in ${Math.ceil(problem.retryAfter ?? 2)} s.`, item);
    } else this.#say(WORDS[problem.code] ?? problem.message, item);
  }
}
