import type { components } from "./schemas.js";

type Problem = components["schemas"]["Problem"];

/** Whatever went wrong. Match on `code`: it is stable, the text is not. */
export class MradError extends Error {
  override readonly name = "MradError";
  readonly requestId: string | undefined;
  /** Seconds after which the server asked to be tried again. */
  readonly retryAfter: number | undefined;

  constructor(
    /** HTTP status; 0 when no answer came. */
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    more: { cause?: unknown; requestId?: string; retryAfter?: number } = {},
  ) {
    super(`${detail} [${code}]`, { cause: more.cause });
    this.requestId = more.requestId;
    this.retryAfter = more.retryAfter;
  }

  /** Whether trying again may help. */
  get passing(): boolean {
    return this.code === "unreachable" || [429, 502, 503].includes(this.status);
  }
}

/** The error that a problem document stands for. */
export function problemOf(status: number, problem: Partial<Problem>, headers?: Headers): MradError {
  const wait = Number.parseFloat(headers?.get("Retry-After") ?? "");
  const id = problem.request_id ?? headers?.get("X-Request-ID");
  return new MradError(
    status,
    problem.code ?? `http_${status}`,
    problem.detail ?? problem.title ?? `HTTP ${status}`,
    { ...(id ? { requestId: id } : {}), ...(Number.isFinite(wait) ? { retryAfter: wait } : {}) },
  );
}
