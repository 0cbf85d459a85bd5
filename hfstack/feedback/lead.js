// Show the lead how the project stands, every few seconds.
"use strict";

const at = (id) => document.getElementById(id);
const headers = { Authorization: "Bearer " + location.hash.slice(1) };
let armed = false;

function make(name, text, attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

async function ask(path, method) {
  let answer;
  try {
    answer = await fetch(path, { method: method || "GET", headers });
  } catch {
    throw new Error("the server cannot be reached");
  }
  if (answer.ok) return answer;
  const read = await answer.json().catch(() => ({}));
  throw new Error(read.error || "the server answers with " + answer.status);
}

function figure(value) { return value === null ? "not defined yet" : value.toFixed(2); }

function list(parent, lines, none) {
  const shown = lines.length ? lines : [none];
  parent.replaceChildren(...shown.map((line) => make("li", line)));
}

function draw(found) {
  at("title").textContent = found.title + ": lead";
  at("progress").textContent = found.judged + " of " + found.wanted + " judgements, "
    + found.items + " items" + (found.stopped ? ", ended" : "");
  at("stop").disabled = found.stopped;
  at("people").replaceChildren(...found.people.map((person) => {
    const row = make("tr", "");
    row.append(make("th", person.annotator, { scope: "row" }));
    const median = person.median_seconds === null ? "–" : person.median_seconds.toFixed(1);
    for (const value of [person.judged, person.skipped, person.ties, median]) {
      row.append(make("td", String(value), { class: "number" }));
    }
    return row;
  }));
  const { raw, alpha_nominal: nominal, alpha_ordinal: ordinal } = found.agreement;
  at("agreement").textContent = "Equal judgements: " + figure(raw)
    + "\nKrippendorff's alpha, nominal: " + figure(nominal)
    + "\nKrippendorff's alpha, ordinal: " + figure(ordinal);
  list(at("divided"), found.divided.map((one) => "Item " + one.item + " (" + one.votes
    + " judgements): " + one.prompt), "None so far");
  list(at("comments"), found.comments.map((one) => (one.flag ? "Flag, " : "") + one.annotator
    + ", item " + one.item + ": " + one.comment), "None so far");
}

function report(text) {
  at("save").className = text ? "bad" : "";
  at("save").textContent = text;
}

async function refresh() {
  try {
    draw(await (await ask("/api/lead")).json());
    if (!armed) report("");
  } catch (error) {
    report("Not up to date: " + error.message);
  }
}

async function stop() {
  try {
    await ask("/api/lead/stop", "POST");
  } catch (error) {
    report("Not ended: " + error.message);
    return;
  }
  await refresh();
}

async function save() {
  const link = document.createElement("a");
  try {
    link.href = URL.createObjectURL(await (await ask("/api/lead/export")).blob());
  } catch (error) {
    report("Not exported: " + error.message);
    return;
  }
  link.download = "judgements.jsonl";
  link.click();
  URL.revokeObjectURL(link.href);
}

at("stop").addEventListener("click", () => {
  if (!armed) {
    armed = true;
    at("stop").textContent = "Press again to end it for everybody";
    setTimeout(() => { armed = false; at("stop").textContent = "End the project"; }, 5000);
    return;
  }
  stop();
});

at("export").addEventListener("click", save);

refresh();
setInterval(refresh, 3000);
