/** Client of an MRAD server. No dependency: `fetch`, in Node 20 or later and in browsers. */

import type { components } from "./schemas.js";
import { MradError, problemOf } from "./errors.js";
import { type Policy, pause, withRetries } from "./retry.js";

export { MradError } from "./errors.js";
export { type MapValues, npyValues } from "./npy.js";

type Schemas = components["schemas"];
export type Bank = Schemas["Bank"];
export type BankList = Schemas["BankList"];
export type Entry = Schemas["MemoryEntry"];
/** A new entry; `note`: what its image could not teach; `effect`: what the lesson changed. */
export type Added = Entry & Pick<Schemas["MemoryAdded"], "note" | "warnings" | "effect">;
export type Removed = Schemas["MemoryRemoved"];
export type CalibrationJob = Schemas["CalibrationJob"];
export type EntryPage = Schemas["MemoryPage"];
export type Problem = Schemas["Problem"];
export type Result = Schemas["Result"];
export type Scores = Schemas["Scores"];
export type Label = Entry["label"];

/** An image file: its path, in Node; a Blob or File, or its bytes, anywhere. */
export type ImageInput = string | Blob | Uint8Array;

export interface Options {
  /** `http://127.0.0.1:8000` by default. */
  baseUrl?: string;
  apiKey?: string;
  /** Tries after the first, on 429, 503 and broken connections. */
  retries?: number;
  /** For one try, milliseconds. */
  timeout?: number;
  fetch?: typeof fetch;
}

export interface ScoreOptions {
  /** Raw score at or above which an image is anomalous; the bank's calibration by default. */
  threshold?: number;
  /** Instead: share of good images that may be flagged. */
  target_fpr?: number;
  pixel_threshold?: number;
  map?: "none" | "png16" | "npy" | "overlay" | "rle" | "polygons";
  /** Nearest memory keys to name, for each level. */
  evidence?: number;
  /** Only these parts of a result. */
  fields?: string[];
  bank?: string;
  /** Product: judged by what the memory holds of it alone. */
  object?: string;
  /** Region of interest: outside nothing is judged. `size` is that of the image it was drawn on. */
  roi?: { size: [number, number]; box?: number[]; polygons?: number[][][]; holes?: number[][][] };
  /** Named parts, each with a score and a verdict of its own; `size` as for `roi`. */
  parts?: {
    size: [number, number];
    /** Align images with the bank's reference picture before parts are cut out. */
    align?: boolean;
    parts: Record<string, { box?: number[]; polygons?: number[][][]; holes?: number[][][] }>;
  };
  /** Where the bank cuts images: look at all of one coarsely, then closely at this share of its tiles. */
  tile_closely?: number;
  /** Maps of images above 32 megapixels at full size. */
  full_map?: boolean;
}

export interface EntryOptions {
  /** Marks the defect (> 0), at the image's size. */
  mask?: ImageInput;
  source?: string;
  object_name?: string;
  defect?: string;
  tags?: string[];
  /** The same key never adds twice; a fresh one protects the retries of one call. */
  idempotencyKey?: string;
}

type Asked = { body?: FormData; headers?: Record<string, string> };

export class MradClient {
  readonly #base: string;
  readonly #key: string | undefined;
  readonly #policy: Policy;
  readonly #timeout: number;
  readonly #fetch: typeof fetch;

  constructor(options: Options = {}) {
    this.#base = (options.baseUrl ?? "http://127.0.0.1:8000").replace(/\/+$/, "");
    this.#key = options.apiKey;
    this.#policy = { retries: options.retries ?? 4, sleep: pause };
    this.#timeout = options.timeout ?? 60_000;
    this.#fetch = options.fetch ?? ((...given) => fetch(...given));
  }

  /** Judge images: a result for each, in order. One that cannot be read has `status: "error"`. */
  async score(images: ImageInput[], options: ScoreOptions = {}): Promise<Scores> {
    const form = new FormData();
    for (const [i, image] of images.entries()) {
      form.append("images", await blobOf(image), nameOf(image, `${i}`));
    }
    for (const [name, value] of Object.entries(options)) {
      if (value === undefined) continue;
      form.append(name, name === "roi" || name === "parts" ? JSON.stringify(value) : String(value));
    }
    const scores = await this.#json<Scores>("POST", "/v1/score", { body: form });
    if (scores.results?.length !== images.length) {
      throw new MradError(200, "unexpected_response", "another number of results than of images");
    }
    return scores;
  }

  /** Judge one image; throws its problem when it could not be judged. */
  async scoreImage(image: ImageInput, options: ScoreOptions = {}): Promise<Result> {
    const result = (await this.score([image], options)).results[0]!;
    if (result.status === "ok") return result;
    throw problemOf(result.problem?.status ?? 0, result.problem ?? {});
  }

  /** The memory in use; `object`: what it holds of one product, and its thresholds. */
  bank(options: { object?: string } = {}): Promise<Bank> {
    const query = options.object === undefined ? "" : `?${new URLSearchParams({ object: options.object })}`;
    return this.#json("GET", `/v1/bank${query}`);
  }

  banks(): Promise<BankList> {
    return this.#json("GET", "/v1/banks");
  }

  /** Switch to another bank; a failure leaves the one in use. */
  activateBank(name: string): Promise<Bank> {
    return this.#json("POST", `/v1/banks/${encodeURIComponent(name)}/activate`);
  }

  /** Teach a labelled image. When this resolves it is on disk and scored with. */
  async addEntry(image: ImageInput, label: Label, options: EntryOptions = {}): Promise<Added> {
    const { mask, tags, idempotencyKey, ...texts } = options;
    const form = new FormData();
    form.append("image", await blobOf(image), nameOf(image, "image"));
    form.append("label", label);
    if (mask) form.append("mask", await blobOf(mask), nameOf(mask, "mask.png"));
    for (const tag of tags ?? []) form.append("tags", tag);
    for (const [name, value] of Object.entries(texts)) {
      if (value !== undefined) form.append(name, value);
    }
    const headers = { "Idempotency-Key": idempotencyKey ?? randomKey() };
    const asked = { body: form, headers };
    const answer = await this.#json<Schemas["MemoryAdded"]>("POST", "/v1/memory/entries", asked);
    const { note, warnings, effect } = answer;
    return { ...answer.entry, note, warnings, effect };
  }

  /** Forget an entry; says what that changed. Null where an earlier try, whose answer was lost, did it. */
  async removeEntry(entryId: string): Promise<Removed | null> {
    const path = `/v1/memory/entries/${encodeURIComponent(entryId)}`;
    const response = await this.#send("DELETE", path, {}, true);
    return response.status === 200 ? ((await response.json()) as Removed) : null;
  }

  /** Choose a bank's thresholds again on the images that its memory holds; `progress` is told how far. */
  async calibrateBank(
    name: string,
    options: { rule?: "f1" | "fpr"; target_fpr?: number; progress?: (job: CalibrationJob) => void } = {},
  ): Promise<CalibrationJob> {
    const { progress, ...asked } = options;
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(asked)) {
      if (value !== undefined) query.set(key, String(value));
    }
    const path = `/v1/banks/${encodeURIComponent(name)}/calibrate`;
    let job = await this.#json<CalibrationJob>("POST", `${path}?${query}`);
    while (job.state === "waiting" || job.state === "running") {
      progress?.(job);
      await pause(0.2);
      job = await this.#json<CalibrationJob>("GET", path);
    }
    if (job.state === "failed") throw new MradError(409, "calibration", job.why);
    return job;
  }

  /** One page of the memory, newest first. */
  entryPage(options: { cursor?: string; limit?: number; label?: Label } = {}): Promise<EntryPage> {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(options)) {
      if (value !== undefined) query.set(name, String(value));
    }
    return this.#json("GET", `/v1/memory/entries?${query}`);
  }

  /** Every entry of the memory, newest first. */
  async *entries(options: { label?: Label } = {}): AsyncGenerator<Entry> {
    let cursor: string | null | undefined;
    do {
      const page = await this.entryPage({ ...options, ...(cursor ? { cursor } : {}), limit: 200 });
      yield* page.entries;
      cursor = page.next_cursor;
    } while (cursor);
  }

  /** Whether scoring requests are welcome; false also when nothing answers. */
  async ready(): Promise<boolean> {
    try {
      const signal = AbortSignal.timeout(this.#timeout);
      return (await this.#fetch(`${this.#base}/health/ready`, { signal })).ok;
    } catch {
      return false;
    }
  }

  async #json<T>(method: string, path: string, asked: Asked = {}): Promise<T> {
    const response = await this.#send(method, path, asked);
    try {
      return (await response.json()) as T;
    } catch {
      throw new MradError(response.status, "unexpected_response", "the answer is not JSON");
    }
  }

  #send(method: string, path: string, asked: Asked, missingIsDone = false): Promise<Response> {
    const headers = new Headers({ Accept: "application/json", ...asked.headers });
    if (this.#key) headers.set("Authorization", `Bearer ${this.#key}`);
    return withRetries(this.#policy, async (attempt) => {
      const signal = AbortSignal.timeout(this.#timeout);
      const init: RequestInit = { method, headers, signal, redirect: "error" };
      if (asked.body) init.body = asked.body;
      const response = await this.#reach(path, init);
      if (response.ok || (missingIsDone && attempt > 0 && response.status === 404)) return response;
      const document: unknown = await response.json().catch(() => ({}));
      throw problemOf(response.status, document as Partial<Problem>, response.headers);
    });
  }

  async #reach(path: string, init: RequestInit): Promise<Response> {
    try {
      return await this.#fetch(this.#base + path, init);
    } catch (cause) {
      const late = cause instanceof Error && cause.name === "TimeoutError";
      const [code, words] = late ? ["timeout", "did not answer in time"] : ["unreachable", "cannot be reached"];
      throw new MradError(0, code!, `${this.#base} ${words}`, { cause });
    }
  }
}

/** Raises `unreadable_file` for a path that cannot be read, or where there is no Node to read it. */
async function blobOf(image: ImageInput): Promise<Blob> {
  if (typeof image !== "string") return image instanceof Blob ? image : new Blob([image as BlobPart]);
  try {
    const { readFile } = await import("node:fs/promises");
    return new Blob([(await readFile(image)) as BlobPart]);
  } catch (cause) {
    throw new MradError(0, "unreadable_file", `${image} cannot be read: a path works in Node only`, { cause });
  }
}

function nameOf(image: ImageInput, fallback: string): string {
  if (typeof image === "string") return image.split(/[\\/]/).pop() || fallback;
  const name = (image as { name?: unknown }).name;
  return typeof name === "string" && name ? name : fallback;
}

function randomKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
