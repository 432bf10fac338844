import { MradError } from "./errors.js";

const FIRST = 0.25;
const LONGEST = 30;

export interface Policy {
  retries: number;
  sleep(seconds: number): Promise<void>;
}

export const pause = (seconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Do it, again where that may help: after what the server asks for, else longer each time. */
export async function withRetries<T>(policy: Policy, work: (attempt: number) => Promise<T>): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await work(attempt);
    } catch (error) {
      if (!(error instanceof MradError) || !error.passing || attempt >= policy.retries) throw error;
      const asked = error.retryAfter ?? Math.min(LONGEST, FIRST * 2 ** attempt);
      await policy.sleep(asked * (1 + Math.random() / 2)); // not all clients at once
    }
  }
}
