/** What stands beside the picture: verdict, evidence, lessons, and what a lesson changed. */

import { picture } from "./api.js";
import { $, digits, el, readable } from "./dom.js";

const VERDICTS = { normal: "Normal", anomalous: "Anomalous" };
/** What the memory calls an image. */
const LABELS = { normal: "Good", anomalous: "Defect" };
const SIGNS = { normal: "✓", anomalous: "!", none: "?" };

/** @param {import("./queue.js").Item} item @param {object} bank @param {Item[]} items */
export function showVerdict(item, bank, items) {
  const card = $("verdict");
  const result = item.result;
  if (!result) {
    card.replaceChildren(...unjudged(item));
    card.dataset.verdict = "none";
    return;
  }
  const verdict = result.verdict ?? "none";
  card.dataset.verdict = item.stale ? "none" : verdict;
  const words = VERDICTS[verdict] ?? "No verdict";
  const headline = item.stale ? [sign("none"), `Was: ${words}`] : [sign(verdict), words];
  const parts = [
    el("h3", { className: "headline" }, ...headline),
    ...recognised(result),
    ...doubts(result),
    ...leading(result, bank, items),
    details(result),
  ];
  if (verdict === "none") {
    parts.push(el("p", { className: "hint" }, whyNone(bank)));
  }
  if (bank?.weakness) {
    const text = `Do not trust this verdict: ${bank.weakness}.`;
    parts.splice(1, 0, el("div", { className: "doubts", role: "note" }, text));
  }
  if (item.stale) {
    parts.push(el("p", { className: "hint" }, `Judged ${item.stale}; being judged again.`));
  }
  card.replaceChildren(...parts.filter(Boolean)); // without a calibration there are no details
}

/** A picture that was taught and is shown again: why it is judged so. */
function recognised({ recognised: taught }) {
  if (!taught) return [];
  const name = taught.source ? ` (${taught.source})` : "";
  const hint = (text) => el("p", { className: "hint" }, text);
  const found = [hint(`Recognised: this picture was taught as ${LABELS[taught.label].toLowerCase()}${name}, and is judged so.`)];
  if (taught.contradicts.length) {
    found.push(hint("It was taught the other way before; the later lesson decides. Remove the wrong one from the memory."));
  }
  return found;
}

/** What was assumed or is odd about the picture: it may not have been read as it is meant. */
function doubts(result) {
  if (!result.warnings?.length) return [];
  const texts = result.warnings.map((text) => el("li", {}, text.replace(/^[a-z_]+: /, "")));
  return [
    el("div", { className: "doubts", role: "note" }, el("strong", {}, "Look before you trust this"), el("ul", {}, ...texts)),
  ];
}

function whyNone(bank) {
  const why = bank?.calibration ?? "";
  if (why && !why.startsWith("the bank holds no calibration")) return `No threshold: ${why}.`;
  return "This memory has no threshold yet: scores have an order, but no verdict. “mrad calibrate” chooses one.";
}

function unjudged(item) {
  if (item.state === "failed") {
    return [
      el("h3", { className: "headline" }, sign("none"), "Not judged"),
      el("p", {}, item.problem.message),
      el("p", { className: "hint" }, advice(item.problem)),
    ];
  }
  return [el("h3", { className: "headline" }, "Judging…"), el("div", { className: "shimmer" })];
}

/** What to do about an image's problem. */
export function advice(problem) {
  const known = {
    doubtful_image: "This server refuses pictures that may be misread; the message says what to set or save again.",
    invalid_image: "Open it in an image viewer to see whether it is whole, and save it again as PNG or JPEG.",
    image_too_large: "Scale it down; the map is coarser than the image anyway.",
    body_too_large: "Scale the image down, or save it as JPEG.",
    cut: "Scale the image down, or save it as JPEG.",
  };
  return known[problem.code] ?? `Code: ${problem.code}`;
}

/** Why a verdict and its probability differ, where they do. */
function disagree({ probability, verdict }) {
  if (probability == null || verdict == null || (probability >= 0.5) === (verdict === "anomalous")) return null;
  const text = "The verdict is by the limit; the probability supposes as many defects as the calibration had, so the two may differ.";
  return el("p", { className: "hint" }, text);
}

function sign(verdict) {
  return el("span", { className: "sign", "aria-hidden": "true" }, SIGNS[verdict]);
}

/** The calibrated score and where it lies; the raw one where there is no calibration. */
function leading(result, bank, items) {
  if (result.calibrated_score == null) return [scale(result, bank, items), rows(facts(result))];
  const first = [["Score, 0 to 100", readable(result)], ["Limit", "50"]];
  if (result.probability != null) {
    first.push(["Probability of a defect", `${Math.round(100 * result.probability)} %`]);
  } else if (result.p_value != null) {
    first.push(["Good parts as unusual", `${(100 * result.p_value).toFixed(1)} %`]);
  }
  return [bar(result.calibrated_score / 100, 0.5), rows(first), disagree(result)];
}

/** What an engineer asks for: the raw numbers. */
function details(result) {
  if (result.calibrated_score == null) return null;
  return el("details", {}, el("summary", {}, "Raw values"), rows(facts(result)));
}

function facts(result) {
  const found = [["Raw score", digits(result.score)]];
  if (result.threshold != null) found.push(["Raw threshold", digits(result.threshold)]);
  found.push(["Whole image alone", digits(result.class_score)]);
  return found;
}

function rows(found) {
  const lines = found.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  return el("dl", { className: "facts" }, ...lines);
}

/** The score between the lowest and the highest seen, with the threshold. */
function scale(result, bank, items) {
  const values = [result.score, ...(bank?.score_range ?? [])];
  for (const other of items) if (other.result) values.push(other.result.score);
  if (result.threshold != null) values.push(result.threshold);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = Math.max((high - low) * 0.06, 1e-6);
  const place = (value) => (value - low + margin) / (high - low + 2 * margin);
  return bar(place(result.score), result.threshold == null ? null : place(result.threshold));
}

/** A scale with a dot, and what lies beyond the limit; both as shares of its length. */
function bar(at, limit) {
  const box = el("div", { className: "scale", "aria-hidden": "true" });
  if (limit != null) {
    const over = el("span", { className: "over" });
    over.style.left = `${100 * limit}%`;
    box.append(over);
  }
  const dot = el("span", { className: "dot" });
  dot.style.left = `${100 * at}%`;
  box.append(dot);
  return box;
}

/** The nearest memory images beside what of the image asked for them. */
export function showEvidence(item, bitmap) {
  const box = $("evidence");
  const found = item.result?.evidence ?? [];
  if (!found.length) {
    const none = item.state === "failed" ? "None: the image was not judged." : "None.";
    box.replaceChildren(el("p", { className: "hint" }, item.result || item.state === "failed" ? none : "…"));
    return;
  }
  const groups = [
    ["The whole image", found.filter((one) => one.level === "image")],
    ["Its most suspicious spot", found.filter((one) => one.level === "patch")],
  ];
  box.replaceChildren(
    ...groups
      .filter(([, ones]) => ones.length)
      .map(([title, ones]) =>
        el(
          "section",
          { "aria-label": title },
          el("h4", {}, title),
          el(
            "ul",
            { className: "side" },
            el("li", { className: "own" }, crop(bitmap, ones[0].query_box), el("span", {}, "This image")),
            ...ones.map(remembered),
          ),
        ),
      ),
  );
}

function remembered(one) {
  const name = one.defect || one.source || "without a name";
  let of = { normal: "its good part", anomalous: "its defect" }[one.region];
  const label = LABELS[one.label] ?? one.label;
  const picture = one.thumbnail
    ? framed(one, el("img", { src: `data:image/jpeg;base64,${one.thumbnail}`, alt: `Memory image ${name}` }))
    : el("span", { className: "missing" }, "no picture");
  const match = `${(100 * one.similarity).toFixed(1)} %`;
  const badge = el("b", { className: `badge ${one.label}` }, label);
  if (one.box && one.size) of = "the framed spot of it";
  const place = of ? el("span", { className: "faint" }, of) : null;
  const title = el("span", { className: "name", title: one.source }, name);
  return el("li", {}, picture, badge, el("span", {}, `${match} alike`), title, place);
}

/** The whole remembered picture with its nearest patch framed, where the key is a single patch. */
function framed(one, picture) {
  if (!one.box || !one.size) return picture;
  const longer = Math.max(...one.size);
  const share = (at, axis) => (100 * ((longer - one.size[axis]) / 2 + at)) / longer;
  const spot = el("span", { className: "spot", "aria-hidden": "true" });
  spot.style.left = `${share(one.box[0], 0)}%`;
  spot.style.top = `${share(one.box[1], 1)}%`;
  spot.style.width = `${(100 * (one.box[2] - one.box[0])) / longer}%`;
  spot.style.height = `${(100 * (one.box[3] - one.box[1])) / longer}%`;
  return el("span", { className: "framed" }, picture, spot);
}

/** A square of the image: all of it, or the surroundings of the box (in full pixels). */
function crop(bitmap, box) {
  const side = 144;
  const canvas = el("canvas", { width: side, height: side, role: "img" });
  canvas.setAttribute("aria-label", box ? "The most suspicious spot" : "The image itself");
  if (!bitmap) return canvas;
  const context = canvas.getContext("2d");
  let [x, y, w, h] = [0, 0, bitmap.width, bitmap.height];
  if (box) {
    const reach = Math.min(3 * Math.max(box[2] - box[0], box[3] - box[1]), w, h);
    x = Math.min(Math.max(0, (box[0] + box[2] - reach) / 2), w - reach);
    y = Math.min(Math.max(0, (box[1] + box[3] - reach) / 2), h - reach);
    [w, h] = [reach, reach];
  }
  const scale = Math.min(side / w, side / h);
  const [width, height] = [w * scale, h * scale];
  const [left, top] = [(side - width) / 2, (side - height) / 2];
  context.drawImage(bitmap, x, y, w, h, left, top, width, height);
  if (box) {
    context.strokeStyle = "#5ff2ff";
    context.lineWidth = 2;
    const corner = [left + (box[0] - x) * scale, top + (box[1] - y) * scale];
    context.strokeRect(...corner, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
  }
  return canvas;
}

/** What was taught here, newest first. `undo(lesson)` forgets it. */
export function showLessons(lessons, undo) {
  $("lessons-box").hidden = !lessons.length;
  $("lessons").replaceChildren(
    ...lessons.map((lesson) => {
      const name = lesson.item.name.split("/").pop();
      const what = lesson.defect ? `${LABELS[lesson.label]}: ${lesson.defect}` : LABELS[lesson.label];
      const button = el("button", { type: "button", disabled: lesson.busy }, "Undo");
      button.setAttribute("aria-label", `Undo: forget ${name}, taught as ${lesson.label}`);
      button.addEventListener("click", () => undo(lesson));
      const text = el("span", { className: "name", title: lesson.item.name }, name);
      return el("li", {}, el("b", { className: `badge ${lesson.label}` }, what), text, button);
    }),
  );
}

/** Before and after, side by side, in the same colours. */
export function showChange({ title, before, after, pictures, effect, product }) {
  const box = $("changed");
  box.hidden = false;
  const onScale = [before, after].every((result) => result.calibrated_score != null);
  const of = (result) => (onScale ? result.calibrated_score : result.score);
  const difference = of(after) - of(before);
  const places = onScale ? 1 : 4;
  const least = 0.5 * 10 ** -places;
  const way = Math.abs(difference) < least ? "unchanged" : difference > 0 ? "higher" : "lower";
  const sides = [["Before", before], ["Now", after]].map(([name, result], i) =>
    el(
      "figure",
      {},
      pictures[i] ?? null,
      el("figcaption", {}, `${name}: `, el("b", {}, of(result).toFixed(places)), " ", verdictWord(result)),
    ),
  );
  const close = el("button", { type: "button", className: "quiet close" }, "Close");
  close.addEventListener("click", () => {
    box.hidden = true;
    $("stage").focus();
  });
  const by = way === "unchanged" ? "" : ` by ${Math.abs(difference).toFixed(places)}`;
  const line = el("p", {}, `The score is ${way}${by}.`);
  box.replaceChildren(el("h3", {}, title), el("div", { className: "pair" }, ...sides), line, ...effects(effect, product), close);
}

/** What a lesson did beyond the image that was taught; the server tells it of all products together. */
function effects(effect, product) {
  if (!effect) return [];
  const hint = (text) => el("p", { className: "hint" }, text);
  const all = product ? [hint(`By all products together, not by ${product} alone:`)] : [];
  return [...all, ...effectOfAll(effect, hint)];
}

function effectOfAll(effect, hint) {
  if (effect.thresholds === "pending") {
    return [hint("The limits are still being brought up to date: verdicts may change once more.")];
  }
  if (effect.thresholds === "stay") return [hint(`The limits stay as they were: ${effect.why}.`)];
  const found = [];
  if (effect.false_alarms != null) {
    found.push(hint(`False alarms to expect now: ${(100 * effect.false_alarms).toFixed(1)} % of good parts.`));
  }
  if (effect.why) found.push(hint(`${effect.why}.`));
  if (!effect.flipped) {
    const judged = effect.judged === 1 ? "1 image" : `${effect.judged} images`;
    return [...found, hint(`No other verdict changed: ${judged} of the memory judged again.`)];
  }
  const verdicts = effect.flipped === 1 ? "1 other verdict" : `${effect.flipped} other verdicts`;
  const list = el("ul", { className: "flips" }, ...effect.flips.map(flipped));
  const more = effect.flipped - effect.flips.length;
  if (more > 0) list.append(el("li", {}, `and ${more} more`));
  const box = el("details", { className: "flipped" }, el("summary", {}, `This changed ${verdicts}: look`), list);
  box.addEventListener("toggle", () => loadPictures(box, effect.flips));
  return [...found, box];
}

function flipped(flip) {
  const name = flip.source || "without a name";
  const words = `${VERDICTS[flip.before]} → ${VERDICTS[flip.after]}`;
  const taught = el("span", { className: "faint" }, `taught as ${LABELS[flip.label].toLowerCase()}`);
  const shown = flip.thumbnail ? el("a", { target: "_blank" }, el("img", { alt: `Memory image ${name}` })) : null;
  const title = el("span", { className: "name", title: flip.source }, name);
  return el("li", {}, shown, title, el("b", { className: `badge ${flip.after}` }, words), taught);
}

/** Once the list is looked at: the pictures need the key, which an address alone does not carry. */
async function loadPictures(box, flips) {
  const links = [...box.querySelectorAll("a:not([href])")];
  const addresses = flips.filter((flip) => flip.thumbnail).map((flip) => flip.thumbnail);
  for (const [i, link] of links.entries()) {
    try {
      link.href = link.firstElementChild.src = await picture(addresses[i]);
    } catch {
      link.replaceChildren("no picture");
    }
  }
}

function verdictWord(result) {
  return result.verdict ? el("span", { className: `badge ${result.verdict}` }, VERDICTS[result.verdict]) : "";
}
