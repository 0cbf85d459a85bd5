// Keep judgements in the browser until the server has them on its disk. Each carries an id that is
// made once, so that sending it again is the same judgement; a reload sends what is left.
"use strict";

const token = location.hash.slice(1);
const KEY = "outbox-" + token.slice(0, 12);
const PAUSES_S = [1, 2, 4, 8, 15];

class NotSaved extends Error {}

async function ask(path, body) {
  const headers = { Authorization: "Bearer " + token };
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body),
    });
  } catch {
    throw new NotSaved("the server cannot be reached");
  }
  if (answer.status === 429 || answer.status >= 500) throw new NotSaved("the server is busy");
  const read = await answer.json();
  if (!answer.ok) throw new Error(read.error || "refused");
  return read;
}

const outbox = {
  waiting: null,
  failures: 0,

  read() {
    try { return JSON.parse(localStorage.getItem(KEY) || "[]"); } catch { return []; }
  },

  write(rows) { localStorage.setItem(KEY, JSON.stringify(rows)); },

  // By id: another tab of the same person may have sent it, and removed it, too.
  remove(id) { this.write(this.read().filter((row) => row.id !== id)); },

  add(judgement) { this.write([...this.read(), judgement]); },

  // Send what is left, oldest first; return the last answer, or null when nothing was left.
  async send(report) {
    clearTimeout(this.waiting);
    let answer = null;
    while (this.read().length) {
      const rows = this.read();
      report("saving", "Saving ...");
      try {
        answer = await ask("/api/judgements", rows[0]);
      } catch (error) {
        if (!(error instanceof NotSaved)) {
          // It will never be taken: say why, and go on.
          this.remove(rows[0].id);
          report("bad", "Not saved: " + error.message);
          throw error;
        }
        const pause = PAUSES_S[Math.min(this.failures, PAUSES_S.length - 1)];
        this.failures += 1;
        report("bad", "Not saved yet: " + error.message + ". Kept here; next try in " + pause
          + " s.");
        await new Promise((resolve) => {
          this.wake = resolve;
          this.waiting = setTimeout(resolve, pause * 1000);
        });
        continue;
      }
      this.failures = 0;
      this.remove(rows[0].id);
      report("good", "Saved");
    }
    return answer;
  },

  retry() { if (this.wake) this.wake(); },
};

// randomUUID is for https and loopback only; a proxy without TLS has neither.
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
