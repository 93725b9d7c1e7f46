// Plans while someone moves a slider: after a short rest, one at a time, and the last one wins.

import { pause } from "./api.js";

const REST_S = 0.12;

export class Planner {
  #send;
  #show;
  #signal;
  #wanted = null;
  #running = false;

  /** `send(spec)` asks for a plan, `show(plan, spec)` and `fail(error, spec)` take the answer to the last spec. */
  constructor(send, { show, fail, busy, signal }) {
    this.#send = send;
    this.#show = { show, fail, busy };
    this.#signal = signal;
  }

  want(spec) {
    this.#wanted = { spec };
    if (!this.#running) this.#run();
  }

  async #run() {
    this.#running = true;
    this.#show.busy(true);
    while (this.#wanted !== null && !this.#signal.aborted) {
      await pause(REST_S, this.#signal);
      const { spec } = this.#wanted;
      this.#wanted = null;
      const answer = await this.#asked(spec);
      if (this.#signal.aborted) return;
      // A newer one may be wanted by now; what has come is shown all the same, so that a long drag shows something.
      if (answer.plan) this.#show.show(answer.plan, spec);
      else if (answer.again) this.#wanted ??= { spec };
      else if (this.#wanted === null) this.#show.fail(answer.error, spec);
    }
    this.#running = false;
    this.#show.busy(false);
  }

  async #asked(spec) {
    try {
      return { plan: await this.#send(spec) };
    } catch (error) {
      if (error.status !== 429) return { error };
      await pause(error.retryAfter ?? 1, this.#signal);
      return { again: true };
    }
  }
}
