/** The server's calls that the page needs. Addresses are relative: a proxy's prefix does no harm. */

const KEY = "mrad-api-key";

/** An answer that says no, or no answer. `code` is the server's stable code. */
export class Problem extends Error {
  constructor(status, code, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The API key of this tab; gone when the tab closes. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) =>
    value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY),
};

/** @returns {Promise<object>} the memory in use, or what it holds of one product */
export const bank = (product = "") =>
  json("GET", product ? `v1/bank?object=${encodeURIComponent(product)}` : "v1/bank");

/** Judge one file, or a region of it ({size, polygons}), by all or by one product's images. @returns {Promise<object>} its result; raises the image's own problem */
export async function score(file, region = null, product = "") {
  const form = new FormData();
  form.append("images", file, file.name);
  form.append("map", "png16");
  form.append("evidence", "3");
  form.append("fields", "score,calibrated_score,class_score,verdict,threshold,probability,p_value,map,evidence,peak_box,recognised,parts,tiles");
  if (region) form.append("roi", JSON.stringify(region));
  if (product) form.append("object", product);
  const { results: [result], bank: by } = await json("POST", "v1/score", form);
  if (result.status === "ok") return { ...result, bank: by };
  const { status = 422, code = "unknown", detail, title } = result.problem ?? {};
  throw new Problem(status, code, detail ?? title ?? "the image was not judged");
}

/** Teach one image. `attempt` is the idempotency key: the same one never teaches twice. */
export function teach(file, label, { mask = null, defect = "", product = "", attempt }) {
  const form = new FormData();
  form.append("image", file, file.name);
  form.append("label", label);
  form.append("source", file.name.slice(0, 500));
  if (defect) form.append("defect", defect);
  if (product) form.append("object_name", product);
  if (mask) {
    form.append("mask", mask, "mask.png");
    form.append("mask_orientation", "upright"); // it is painted on the picture as it is shown
  }
  return json("POST", "v1/memory/entries", form, { "Idempotency-Key": attempt });
}

/** Forget an entry; one that is gone already counts as forgotten. @returns what that changed, or null */
export async function forget(entryId) {
  try {
    return (await json("DELETE", `v1/memory/entries/${encodeURIComponent(entryId)}`)).effect;
  } catch (problem) {
    if (problem.code !== "entry_not_found") throw problem;
    return null;
  }
}

/** A picture of the server, as an address that this tab may show. */
export async function picture(address) {
  return URL.createObjectURL(await (await call("GET", address)).blob());
}

/** Whether anything answers at the server's address. */
export async function alive() {
  try {
    return (await fetch("health/live", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/** An idempotency key. (randomUUID is missing on plain http.) */
export function newAttempt() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function json(method, path, body, headers) {
  const response = await call(method, path, body, headers);
  try {
    return await response.json();
  } catch {
    throw new Problem(response.status, "not_json", "the answer is not this server's");
  }
}

async function call(method, path, body, headers = {}) {
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { method, body, headers, cache: "no-store" });
  } catch {
    if (body && (await alive())) {
      const cut = "the connection was cut while sending: the file may be too large for this server";
      throw new Problem(0, "cut", cut);
    }
    throw new Problem(0, "away", "the server cannot be reached");
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

async function problemOf(response) {
  let document = {};
  try {
    document = await response.json();
  } catch {
    // a proxy's page: the status has to do
  }
  const wait = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new Problem(
    response.status,
    document.code ?? `http_${response.status}`,
    document.detail ?? document.title ?? `the server answered ${response.status}`,
    Number.isFinite(wait) ? wait : null,
  );
}
