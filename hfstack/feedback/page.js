// One item at a time: show it, take a judgement by keys or buttons, save it, show the next.
// Whatever a model wrote goes into textContent, so that it is text and nothing else.
"use strict";

const at = (id) => document.getElementById(id);
const STRENGTHS = ["", "a little better", "better", "much better"];
const LETTERS = "ABCDEFGHI";
let project = null;
let item = null; // what is shown
let verdict = null; // what was chosen, on the sides of the page
let place = 0; // which answer or scale the next digit is for
let busy = false;
let seen = 0; // milliseconds before the page was last hidden
let since = 0;

function make(name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function report(state, text) {
  at("save").textContent = text;
  at("save").className = state;
  at("retry").hidden = state !== "bad" || !outbox.read().length;
}

function showTurns(parent, turns, named) {
  parent.replaceChildren();
  for (const turn of turns) {
    const block = make("div", undefined, { class: "turn" });
    if (named || turns.length > 1) block.append(make("div", turn.role, { class: "role" }));
    block.append(make("p", turn.text, { class: "text" }));
    parent.append(block);
  }
}

function choice(label, key, value, isChosen) {
  const button = make("button", label, { type: "button", "aria-pressed": String(isChosen) });
  button.append(make("kbd", key));
  button.addEventListener("click", () => choose(value));
  return button;
}

// What can be chosen, one list of {label, key, value} for each answer or scale.
function groups() {
  if (project.kind === "pairs") {
    const options = [3, 2, 1].map((strength) => [0, strength]);
    options.push([null, 0], [1, 1], [1, 2], [1, 3]);
    return [{ name: "Which answer is better, and how much?", options: options.map(
      ([side, strength], index) => ({
        label: side === null ? "Tie" : LETTERS[side] + " is " + STRENGTHS[strength],
        key: String(index + 1),
        value: { choice: side, strength },
        isChosen: Boolean(verdict) && verdict.choice === side && verdict.strength === strength,
      })) }];
  }
  if (project.kind === "thumbs") {
    return [{ name: "Is this answer good?", options: [
      ["Good", "1", true], ["Bad", "2", false], ["Neither", "3", null],
    ].map(([label, key, value]) => ({
      label, key, value: { label: value }, isChosen: Boolean(verdict) && verdict.label === value,
    })) }];
  }
  if (project.kind === "ranking") {
    return item.answers.map((_, answer) => ({
      name: "Rank of answer " + LETTERS[answer] + " (1 is best, equal ranks are ties)",
      options: item.answers.map((_, rank) => ({
        label: String(rank + 1), key: String(rank + 1), value: [answer, rank + 1],
        isChosen: Boolean(verdict) && verdict.ranks[answer] === rank + 1,
      })) }));
  }
  if (project.kind === "ratings") {
    return project.scales.map((scale) => ({
      name: scale + " (1 is worst, 5 is best)",
      options: [1, 2, 3, 4, 5].map((value) => ({
        label: String(value), key: String(value), value: [scale, value],
        isChosen: Boolean(verdict) && verdict.scales[scale] === value,
      })) }));
  }
  return [];
}

function choose(value) {
  if (busy) return;
  if (project.kind === "ranking") {
    verdict = verdict || { ranks: item.answers.map(() => null) };
    verdict.ranks[value[0]] = value[1];
    place = Math.min(value[0] + 1, item.answers.length - 1);
  } else if (project.kind === "ratings") {
    verdict = verdict || { scales: {} };
    verdict.scales[value[0]] = value[1];
    place = Math.min(project.scales.indexOf(value[0]) + 1, project.scales.length - 1);
  } else {
    verdict = value;
  }
  drawControls();
}

function isComplete() {
  if (project.kind === "correction") return at("corrected").value.trim() !== "";
  if (!verdict) return false;
  if (project.kind === "ranking") return verdict.ranks.every((rank) => rank !== null);
  if (project.kind === "ratings") return project.scales.every((name) => name in verdict.scales);
  return true;
}

function drawControls() {
  const parts = groups();
  const focused = document.activeElement && document.activeElement.dataset.spot;
  const drawn = parts.map((group, index) => {
    const set = make("fieldset");
    const marked = parts.length > 1 && index === place ? "▸ " : "";
    set.append(make("legend", marked + group.name));
    const row = make("div", undefined, { class: group.options.length === 7 ? "row scale" : "row" });
    group.options.forEach((option, spot) => {
      const button = choice(option.label, option.key, option.value, option.isChosen);
      button.dataset.spot = index + "." + spot;
      row.append(button);
    });
    set.append(row);
    return set;
  });
  if (project.kind !== "correction") at("controls").replaceChildren(...drawn);
  if (focused) at("controls").querySelector(`[data-spot="${focused}"]`)?.focus();

  at("answers").querySelectorAll(".card").forEach((card, side) => {
    const isBetter = project.kind === "pairs" && verdict && verdict.choice === side;
    card.classList.toggle("chosen", Boolean(isBetter));
  });
  at("send").disabled = busy || !isComplete();
  for (const id of ["skip", "flag", "undo", "undo-last"]) at(id).disabled = busy;
}

function draftKey() { return KEY + "-draft-" + item.step; }

function saveDraft() {
  const corrected = at("corrected");
  const draft = { comment: at("comment").value, text: corrected ? corrected.value : null };
  memory.set(draftKey(), JSON.stringify(draft));
}

function showItem(given, isEdit) {
  item = given;
  verdict = given.verdict;
  place = 0;
  at("over").hidden = true;
  at("judging").hidden = false;
  at("editing").hidden = at("back").hidden = !isEdit;
  showTurns(at("prompt"), given.prompt, given.prompt.length > 1);

  const cards = given.answers.map((turns, side) => {
    const card = make("article", undefined, { class: "card" });
    const many = given.answers.length > 1;
    card.append(make("h2", many ? "Answer " + LETTERS[side] : "Answer"));
    const body = make("div");
    showTurns(body, turns, false);
    card.append(body);
    return card;
  });
  at("answers").replaceChildren(...cards);
  at("answers").classList.toggle("two", cards.length === 2);

  const draft = JSON.parse(memory.get(draftKey()) || "{}");
  if (project.kind === "correction") {
    const text = verdict ? verdict.text : given.answers[0].map((turn) => turn.text).join("\n");
    const field = make("textarea", undefined, { id: "corrected", class: "long" });
    field.value = draft.text ?? text;
    field.addEventListener("input", () => { saveDraft(); drawControls(); });
    at("controls").replaceChildren(
      make("label", "The answer as it should be (Ctrl+Enter saves)", { for: "corrected" }), field);
  }
  at("comment").value = draft.comment ?? given.comment;
  at("flag").setAttribute("aria-pressed", String(given.flag));
  seen = 0;
  since = performance.now();
  drawControls();
  window.scrollTo(0, 0);
}

function show(next) {
  const share = next.wanted ? Math.floor(100 * next.judged_in_all / next.wanted) : 100;
  at("progress").textContent = next.done + " judged by you, " + share + " % of all";
  if (next.state === "item") {
    showItem(next, false);
  } else {
    item = null;
    at("judging").hidden = true;
    at("over").hidden = false;
    at("again").hidden = next.state === "stopped";
    at("undo-last").hidden = next.state === "stopped" || !next.done;
    at("undo-last").disabled = false; // it was not, while the last judgement was saved
    at("why").textContent = next.state === "stopped"
      ? "The lead has ended this project. Everything that you judged is saved."
      : "There is nothing left for you at the moment. You can close this page.";
  }
  if (at("earlier").open) showHistory();
}

function seconds() {
  const visible = seen + (document.hidden ? 0 : performance.now() - since);
  return Math.min(86400, Math.round(visible / 100) / 10);
}

async function act(action, step) {
  if (busy) return;
  const judgement = { id: newId(), step, action, seconds: item ? seconds() : 0 };
  if (action !== "undo") {
    judgement.comment = at("comment").value;
    judgement.flag = at("flag").getAttribute("aria-pressed") === "true";
    memory.remove(draftKey());
    memory.set(KEY + "-last", String(step));
  }
  if (action === "judge") {
    judgement.verdict = project.kind === "correction" ? { text: at("corrected").value } : verdict;
  }
  outbox.add(judgement);
  await deliver();
}

async function deliver() {
  busy = true;
  if (item) drawControls();
  try {
    const answer = await outbox.send(report);
    busy = false;
    show(answer ? answer.next : await ask("/api/next"));
  } catch (error) {
    busy = false;
    if (item) drawControls();
    report("bad", (error instanceof Refused ? "Not saved: " : "Not loaded: ") + error.message);
  }
}

function send() {
  if (item && isComplete()) act("judge", item.step);
}

// Nothing is lost when a question to the server fails, but the person must see why nothing happens.
async function askOrReport(path) {
  try {
    return await ask(path);
  } catch (error) {
    report("bad", "Not done: " + error.message + ". Try again.");
    return null;
  }
}

async function undo() {
  if (busy) return;
  busy = true; // a second press meanwhile would take back one more
  const rows = await askOrReport("/api/steps");
  busy = false;
  if (!rows) return;
  if (!rows.length) {
    report("", "Nothing to undo");
    return;
  }
  const last = Number(memory.get(KEY + "-last"));
  const isThere = memory.get(KEY + "-last") !== null
    && rows.some((row) => row.step === last);
  memory.remove(KEY + "-last");
  await act("undo", isThere ? last : rows[0].step);
}

async function showHistory() {
  const rows = await askOrReport("/api/steps");
  if (!rows) return;
  at("history").replaceChildren(...rows.map((row) => {
    const line = make("li");
    const skipped = row.action === "skip" ? " (skipped)" : "";
    const label = "Edit " + (row.step + 1) + skipped + ": " + row.prompt;
    const button = make("button", label, { type: "button" });
    button.addEventListener("click", async () => {
      const found = await askOrReport("/api/steps/" + row.step);
      if (found) showItem(found, true);
    });
    line.append(button);
    return line;
  }));
}

function flag() {
  const pressed = at("flag").getAttribute("aria-pressed") === "true";
  at("flag").setAttribute("aria-pressed", String(!pressed));
  if (!pressed) at("comment").focus();
}

async function leave() {
  const next = await askOrReport("/api/next");
  if (!next) return;
  report("", "");
  show(next);
}

// The letter or digit of a key; by its place where a keyboard writes another alphabet or signs.
function keyOf(event) {
  const place = /^(?:Key|Digit)(.)$/.exec(event.code);
  const isPlain = /^[a-z0-9]$/i.test(event.key) || !place;
  return (isPlain ? event.key : place[1]).toLowerCase();
}

function pressed(event) {
  const isWriting = event.target.matches("textarea, input");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat) send();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || busy || !project) return;
  if (isWriting) {
    if (event.key === "Escape") event.target.blur();
    return;
  }

  const key = keyOf(event);
  // A key that is held down must not judge one item after the other.
  if (event.repeat && !key.startsWith("arrow")) return;
  const isInChoice = event.target === document.body || event.target.closest("#controls");
  if (key === "u") { event.preventDefault(); undo(); return; }
  if (!item) return;
  const options = (groups()[place] || { options: [] }).options;
  const option = options.find((one) => one.key === key);
  if (option) choose(option.value);
  else if (key === "enter" && isInChoice) { event.preventDefault(); send(); }
  else if (key === "s") act("skip", item.step);
  else if (key === "f") { event.preventDefault(); flag(); }
  else if (key === "escape" && !at("back").hidden) leave();
  else if (key === "arrowup" || key === "arrowdown") {
    const count = groups().length;
    if (count < 2) return;
    event.preventDefault();
    place = Math.max(0, Math.min(count - 1, place + (key === "arrowup" ? -1 : 1)));
    drawControls();
  }
}

async function start() {
  at("send").addEventListener("click", send);
  at("skip").addEventListener("click", () => act("skip", item.step));
  at("flag").addEventListener("click", flag);
  at("undo").addEventListener("click", undo);
  at("undo-last").addEventListener("click", undo);
  at("back").addEventListener("click", leave);
  at("again").addEventListener("click", leave);
  at("retry").addEventListener("click", () => outbox.retry());
  at("comment").addEventListener("input", saveDraft);
  at("earlier").addEventListener("toggle", () => { if (at("earlier").open) showHistory(); });
  document.addEventListener("keydown", pressed);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) seen += performance.now() - since;
    since = performance.now();
  });

  try {
    project = await ask("/api/project");
  } catch (error) {
    report("bad", error.message);
    if (error instanceof NotSaved) setTimeout(() => location.reload(), 3000);
    return;
  }
  at("title").textContent = project.title;
  document.title = project.title;
  at("guidelines").textContent = project.guidelines;
  at("guide").hidden = !project.guidelines;
  at("layout").classList.toggle("guided", Boolean(project.guidelines));
  await deliver();
}

start();
