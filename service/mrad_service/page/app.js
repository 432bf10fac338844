/** The page: wires images, picture, judgement and teaching together. */

import { alive, bank as askBank, key } from "./api.js";
import { $, announce, count, digits, el, show } from "./dom.js";
import { rangeOf } from "./heat.js";
import { listen } from "./intake.js";
import { Look } from "./look.js";
import { showRow } from "./list.js";
import { showEvidence, showVerdict } from "./panels.js";
import { Product } from "./product.js";
import { Queue, sharedRange } from "./queue.js";
import { Teacher } from "./teach.js";
import { View } from "./view.js";

const queue = new Queue();
const view = new View();
let bank = null;
let current = null;
let opened = null; // the item whose picture is in the view
let thresholdTouched = false;
let returning = 0; // the timer that looks whether the server is back
let known = {}; // what answers by, of all products ("") and of those asked for: whether it has changed
let asking = false;

const product = new Product(() => rejudge());
const look = new Look(view, () => view.repaint(), judgeRegion);
const teacher = new Teacher({
  view,
  queue,
  current: () => current,
  refresh: (item) => refresh(item),
  taught: (item) => {
    known = {}; // what has changed now is this lesson's
    outdate("before the last lesson", item);
  },
  learned: (pending) => learned(pending),
  product: () => product.name,
});

async function connect() {
  try {
    hideBanner();
    await readBank();
    queue.resume();
    if (current) await refresh(current);
  } catch (problem) {
    stopped(problem);
  }
}

/** The memory, or what it holds of the chosen product. */
async function readBank() {
  const whole = await askBank();
  teacher.allow(whole.writable);
  const gone = product.fill(whole.objects);
  queue.product = product.name;
  bank = product.name ? await askBank(product.name) : whole;
  if (changed({ "": whole, [product.name]: bank })) outdate("before the memory changed");
  if (gone && queue.items.length) {
    banner(`The memory holds no “${gone}” any more: all of it judges now.`, false);
    outdate("by other images of the memory");
  }
  const whose = product.name && ` of ${product.name}`;
  $("bank").textContent = `${bank.name} · ${count(bank.entries, "image")}${whose} in the memory`;
}

/** Whether what answers is another than when it was last asked about: taught elsewhere, calibrated, another bank. */
function changed(now) {
  let other = false;
  for (const [name, { name: of, head, entries, threshold, pixel_threshold: pixel }] of Object.entries(now)) {
    const state = JSON.stringify([of, head, entries, threshold, pixel]);
    other ||= name in known && known[name] !== state;
    known[name] = state;
  }
  return other;
}

/** Ask whether the memory was changed elsewhere: in another tab, by a program, at a restart. */
async function follow() {
  const stands = !$("banner").hidden && !$("banner-act").hidden; // it goes on after that
  if (asking || !bank || stands) return;
  asking = true;
  await readBank().then(() => current && refresh(current)).catch(() => null); // a request says what is wrong
  asking = false;
}

/** Another product was chosen: what was judged by others' images is judged again, the image in view at once. */
async function rejudge() {
  teacher.cancel();
  try {
    await readBank();
  } catch (problem) {
    stopped(problem);
    return;
  }
  thresholdTouched = false;
  outdate("by other images of the memory");
}

/** No verdict of before holds any more, and why; the image in view is judged again at once, unless it is `asked` about already. */
function outdate(why, asked = null) {
  if (!asked) show($("changed"), false); // it compares with a verdict of before
  queue.epoch += 1;
  queue.why = why;
  for (const item of queue.items) {
    if (item.state !== "done") continue; // what runs is outdated when it comes
    item.stale = why;
    showRow(item, item === current, open);
  }
  offerAgain();
  if (current?.stale && current !== asked) queue.again([current]);
}

function offerAgain() {
  show($("score-again"), queue.items.some((item) => item.stale && item.state === "done" && item !== current));
}

/** Nothing goes on until a person has done something. */
function stopped(problem) {
  if (problem.status === 401) {
    hideBanner();
    $("bank").textContent = "A key is needed";
    askKey(key.get() ? "The server does not know that key." : null);
    return;
  }
  const words = {
    away: "The server cannot be reached. Your images are kept: go on when it is back.",
    forbidden: "This key may not judge images: it needs the scope “score”.",
    draining: "The server is stopping. Your images are kept: go on when it is back.",
  };
  if (problem.code === "away") {
    $("bank").textContent = "Server away";
    clearTimeout(returning);
    returning = setTimeout(comeBack, 3000);
  }
  banner(words[problem.code] ?? `${problem.message} (${problem.code})`);
}

/** Look now and then whether the server is back, as long as the banner says that it is away. */
async function comeBack() {
  if ($("banner").hidden) return;
  if (await alive()) await connect();
  else returning = setTimeout(comeBack, 3000);
}

function banner(text, act = true) {
  $("banner-text").textContent = text;
  show($("banner-act"), act);
  show($("banner"), true);
}

function hideBanner() {
  show($("banner"), false);
}

function askKey(why) {
  if (why) $("key-why").textContent = why;
  $("key").value = key.get();
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

function take(files, left = []) {
  if ($("banner-act").hidden) hideBanner();
  if (left.length) {
    const names = left.slice(0, 3).join(", ") + (left.length > 3 ? ", …" : "");
    const text = `${count(left.length, "file")} left out, as no image by name: ${names}.`;
    if ($("banner").hidden) banner(files.length ? text : `There was no image in that. ${text}`, false);
  } else if (!files.length) banner("There was no image in that.", false);
  if (!files.length) return;
  $("main").classList.remove("empty");
  const added = queue.add(files);
  announce(`${count(added.length, "image")} added`);
  open(added[0]);
}

async function open(item) {
  teacher.cancel();
  show($("changed"), false);
  const before = current;
  current = item;
  show($("stage"), true);
  show($("judgement"), true);
  if (before) showRow(before, false, open);
  showRow(item, true, open);
  // Its map was let go, or the memory has learned since: what is shown is never an old verdict.
  if (item.state === "done" && (!item.png || item.stale)) queue.again([item]);
  await refresh(item);
}

/** Draw everything about an item, if it is the one looked at. */
async function refresh(item) {
  if (item !== current) return;
  const field = await item.field();
  if (item !== current) return;
  if (opened !== item) {
    const shown = await view.open(item.file, field);
    if (item !== current) return;
    opened = item;
    view.region = item.region?.polygons[0] ?? null;
    look.open(view.region);
    show($("unseen-format"), !shown && item.state !== "failed");
  } else view.setField(field);
  $("stage-title").textContent = item.name;
  view.failed = item.state === "failed";
  setRange(item);
  setBoxes(item);
  view.draw(item.name);
  showVerdict(item, bank, queue.items);
  showEvidence(item, view.bitmap);
  teacher.open(item);
}

/** Tiles, parts and region over the picture. */
function setBoxes(item) {
  const tiles = item.result?.tiles ?? [];
  show($("tiles-box"), tiles.length > 0);
  view.tiles = $("tiles").checked ? tiles.map((tile) => tile.box) : [];
  view.seen = tiles.filter((tile) => tile.closely).map((tile) => tile.box);
  view.unseen = tiles.filter((tile) => !tile.closely).map((tile) => tile.box);
  view.parts = item.result?.parts ?? [];
  view.strongest = item.result?.verdict === "anomalous" ? item.result.peak_box : null;
  view.region = item.region?.polygons[0] ?? null;
  show($("region-save"), view.region !== null);
}

/** The region as a file for a new memory: this one has learned what lies outside, too. */
function saveRegion() {
  if (!current?.region) return;
  const file = new Blob([JSON.stringify(current.region)], { type: "application/json" });
  const address = URL.createObjectURL(file);
  el("a", { href: address, download: "roi.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  $("look-hint").textContent = "Build a memory with it: mrad build … --roi roi.json. The memory in use keeps "
    + "its own region: it holds what was outside, too, and its threshold was measured so.";
}

/** Judge the current image again, of a region alone or of all of it. */
function judgeRegion(corners) {
  const { field } = view;
  if (!current || (corners && !field)) return;
  const drawn = view.drawnPerPixel;
  current.region = corners && {
    size: field.full,
    polygons: [corners.map(([x, y]) => [x / drawn, y / drawn])],
  };
  view.region = current.region?.polygons[0] ?? null;
  show($("region-off"), view.region !== null);
  queue.again([current]);
}

/** Colours and the threshold slider span what was seen: raw values lie close together. */
function setRange(item) {
  const own = view.field ? rangeOf(view.field) : null;
  const range = ($("shared").checked ? (bank?.map_range ?? sharedRange(queue.items)) : own) ?? [0, 1];
  view.range = range;
  const slider = $("threshold");
  if (!thresholdTouched && item.result) view.threshold = startThreshold(range);
  const ends = [...range, ...(own ?? []), view.threshold];
  slider.min = Math.min(...ends);
  slider.max = Math.max(...ends);
  slider.value = view.threshold;
  sayThreshold();
}

function startThreshold([low, high]) {
  return bank?.pixel_threshold ?? low + 0.7 * (high - low);
}

function sayThreshold() {
  const calibrated = bank?.pixel_threshold;
  const own = calibrated != null && Math.abs(view.threshold - calibrated) < 1e-9;
  $("threshold-out").textContent = digits(view.threshold) + (own ? " (calibrated)" : "");
}

/** What a lesson has made of the memory; `pending`: thresholds come later, so it is asked about some times more. */
async function learned(pending) {
  known = {};
  await readBank().catch(() => null); // what was known of it stays
  if (pending) [5, 15, 45, 120].forEach((seconds) => setTimeout(follow, 1000 * seconds));
}

function showProgress() {
  const left = queue.left;
  const total = queue.items.length;
  const done = total - left;
  show($("progress-box"), left > 0 && total > 1);
  $("progress").max = total;
  $("progress").value = done;
  $("progress-text").textContent = `${done} of ${total} judged`;
  if (left === 0 && total) announce(summary());
}

function summary() {
  const anomalous = queue.items.filter((item) => item.result?.verdict === "anomalous").length;
  const failed = queue.items.filter((item) => item.state === "failed").length;
  const parts = [`${count(queue.items.length - failed, "image")} judged`, `${anomalous} anomalous`];
  if (failed) parts.push(`${failed} could not be judged`);
  return parts.join(", ");
}

function listenToControls() {
  $("opacity").addEventListener("input", (event) => {
    view.opacity = event.target.value / 100;
    $("opacity-out").textContent = `${event.target.value} %`;
    if (current) view.draw(current.name);
  });
  $("threshold").addEventListener("input", (event) => {
    thresholdTouched = true;
    view.threshold = Number(event.target.value);
    sayThreshold();
    if (current) view.draw(current.name);
  });
  $("outlines").addEventListener("change", (event) => {
    view.outlines = event.target.checked;
    if (current) view.draw(current.name);
  });
  $("region-save").addEventListener("click", saveRegion);
  $("tiles").addEventListener("change", () => current && refresh(current));
  $("shared").addEventListener("change", () => current && refresh(current));
  $("score-again").addEventListener("click", () => {
    queue.again(queue.items.filter((item) => item.stale));
  });
  $("banner-act").addEventListener("click", () => connect());
  $("key-open").addEventListener("click", () => askKey(null));
  $("key-dialog").addEventListener("close", () => {
    if ($("key-dialog").returnValue !== "save") return;
    key.set($("key").value.trim());
    connect();
  });
}

queue.addEventListener("change", ({ detail: item }) => {
  showRow(item, item === current, open);
  showProgress();
  offerAgain();
  if (item.state !== "running") refresh(item);
  if (item.state !== "done") return;
  if (item.stale && item === current) queue.again([item]); // the memory has changed while it was judged
  const { bank: by, threshold } = item.result;
  const same = by === bank?.name && (threshold ?? null) === (bank.threshold ?? null);
  if (!item.stale && !same) follow();
});
queue.addEventListener("blocked", ({ detail }) => stopped(detail));
queue.addEventListener("busy", ({ detail: seconds }) => {
  const text = `The server is busy; trying again in ${Math.ceil(seconds)} s.`;
  banner(text, false);
  setTimeout(() => $("banner-text").textContent === text && hideBanner(), seconds * 1000);
});

window.addEventListener("focus", follow);
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && follow());

listen(take);
listenToControls();
connect();
