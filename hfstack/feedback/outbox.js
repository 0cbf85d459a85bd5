// Keep judgements in the browser until the server has them on its disk. Each carries an id that is
// made once, so that sending it again is the same judgement; a reload sends what is left.
"use strict";

const token = location.hash.slice(1);
const KEY = "outbox-" + token.slice(0, 12);
const PAUSES_S = [1, 2, 4, 8, 15];

class NotSaved extends Error {} // for now: what was to be saved is kept, and sent again
class Refused extends Error {} // for good: the same would be refused again
const FOR_GOOD = [409, 413, 422];

// What a page remembers until it is closed. A browser that keeps nothing (storage is switched off,
// or full) can still judge; there a reload loses what is being written.
const memory = {
  get(key) { try { return sessionStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { sessionStorage.setItem(key, value); } catch { /* as above */ } },
  remove(key) { try { sessionStorage.removeItem(key); } catch { /* as above */ } },
};

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
  // No JSON comes from a proxy, or from what else may listen at this address.
  const read = await answer.json().catch(() => ({}));
  if (answer.ok) return read;
  if (answer.status === 429) throw new NotSaved("the server is busy");
  const reason = read.error || "the server answers with " + answer.status;
  if (answer.status >= 500) throw new NotSaved(reason);
  throw FOR_GOOD.includes(answer.status) ? new Refused(reason) : new Error(reason);
}

const outbox = {
  waiting: null,
  failures: 0,
  unkept: [], // what the browser would not keep, and this page alone holds

  stored() {
    try { return JSON.parse(localStorage.getItem(KEY) || "[]"); } catch { return []; }
  },

  read() { return [...this.stored(), ...this.unkept]; },

  add(judgement) {
    try {
      localStorage.setItem(KEY, JSON.stringify([...this.stored(), judgement]));
    } catch {
      this.unkept.push(judgement);
    }
  },

  // By id: another tab of the same person may have sent it, and removed it, too.
  remove(id) {
    const others = (rows) => rows.filter((row) => row.id !== id);
    this.unkept = others(this.unkept);
    try { localStorage.setItem(KEY, JSON.stringify(others(this.stored()))); } catch { /* empty */ }
  },

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
        if (error instanceof Refused) {
          // It will never be taken: say why, and go on.
          this.remove(rows[0].id);
          report("bad", "Not saved: " + error.message);
          throw error;
        }
        const pause = PAUSES_S[Math.min(this.failures, PAUSES_S.length - 1)];
        this.failures += 1;
        const keeping = this.unkept.length
          ? ". This browser keeps nothing: leave the page open; next try in "
          : ". Kept here; next try in ";
        report("bad", "Not saved yet: " + error.message + keeping + pause + " s.");
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
