"use strict";

// Theme: follow the system, or what the reader chose here; #light and #dark in the address choose for a picture.
(() => {
  const root = document.documentElement;
  const group = document.querySelector(".themes");
  const apply = (choice) => {
    if (choice === "auto") delete root.dataset.theme;
    else root.dataset.theme = choice;
    for (const button of group.children) button.setAttribute("aria-pressed", button.dataset.themeChoice === choice);
  };
  let saved = null;
  try { saved = localStorage.getItem("hfstack-theme"); } catch { /* storage is closed to local files in some browsers */ }
  const asked = location.hash.slice(1);
  apply(["light", "dark"].includes(asked) ? asked : saved ?? "auto");
  group.hidden = false;
  group.addEventListener("click", (event) => {
    const choice = event.target.dataset.themeChoice;
    if (!choice) return;
    apply(choice);
    try { localStorage.setItem("hfstack-theme", choice); } catch { /* as above */ }
  });
})();

// Charts: the values under the pointer, a finger, or the arrow keys.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);

  const format = (value) => {
    if (value === null) return "not finite";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(3).replace("e+", "e");
    return size >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(5)));
  };

  const nearest = (steps, step) => {
    let low = 0;
    let high = steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle;
      else high = middle;
    }
    return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
  };

  const scale = (text, log) => {
    const [low, high] = text.split(",").map(Number);
    const to = log ? Math.log : Number;
    const from = log ? Math.exp : Number;
    return {
      position: (value) => (to(value) - to(low)) / (to(high) - to(low)),
      value: (position) => from(to(low) + position * (to(high) - to(low))),
    };
  };

  const element = (name, className, text = "") => {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  };

  const attach = (area, chart) => {
    const x = scale(area.dataset.x, area.dataset.log.includes("x"));
    const y = scale(area.dataset.y, area.dataset.log.includes("y"));
    const steps = [...new Set(chart.series.flatMap((line) => line.x))].sort((a, b) => a - b);
    const overlay = element("div", "overlay");
    const rule = element("div", "rule");
    const box = element("div", "readout");
    overlay.append(rule, box);
    overlay.hidden = true;
    area.append(overlay);
    let index = steps.length - 1;

    const show = (at) => {
      index = Math.max(0, Math.min(steps.length - 1, at));
      const step = steps[index];
      const across = x.position(step);
      overlay.querySelectorAll(".dot").forEach((dot) => dot.remove());
      rule.style.left = `${100 * across}%`;
      box.replaceChildren(element("b", "", `step ${step.toLocaleString("en")}`));
      for (const line of chart.series) {
        const at = nearest(line.x, step);
        const reach = (line.x[line.x.length - 1] - line.x[0]) / Math.max(1, line.x.length - 1);
        if (Math.abs(line.x[at] - step) > Math.max(1, reach / 2)) continue;
        const row = element("span", "row");
        const when = line.x[at] === step ? "" : ` (step ${line.x[at]})`;
        if (chart.series.length > 1) row.append(element("i", `swatch c${line.color}`), element("span", "", line.label));
        row.append(element("span", "number", format(line.y[at]) + when));
        box.append(row);
        if (line.y[at] === null) continue;
        const height = y.position(line.y[at]);
        if (!Number.isFinite(height) || height < -0.01 || height > 1.01) continue;
        const dot = element("div", `dot c${line.color}`);
        dot.style.left = `${100 * x.position(line.x[at])}%`;
        dot.style.top = `${100 - 100 * height}%`;
        overlay.append(dot);
      }
      box.style.left = across > 0.5 ? "auto" : `${100 * across}%`;
      box.style.right = across > 0.5 ? `${100 - 100 * across}%` : "auto";
      overlay.hidden = false;
    };

    const point = (event) => {
      const bounds = area.getBoundingClientRect();
      const across = Math.max(0, Math.min(1, (event.clientX - bounds.left) / bounds.width));
      show(nearest(steps, x.value(across)));
    };
    area.addEventListener("pointermove", point);
    area.addEventListener("pointerdown", point);
    area.addEventListener("pointerleave", () => { overlay.hidden = true; });
    area.addEventListener("blur", () => { overlay.hidden = true; });
    area.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      show(index + move);
    });
  };

  for (const figure of document.querySelectorAll("figure.chart"))
    for (const area of figure.querySelectorAll(".area")) attach(area, data[figure.dataset.chart]);
})();

// Samples: one slider moves all prompts of a run through the steps of training.
for (const section of document.querySelectorAll(".samples[data-steps]")) {
  const steps = section.dataset.steps.split(",").map(Number);
  const notes = section.dataset.notes.split("|");
  const scrubber = section.querySelector(".scrubber");
  const slider = scrubber.querySelector("input");
  const show = () => {
    const step = steps[slider.value];
    scrubber.querySelector("output").textContent = step.toLocaleString("en");
    scrubber.querySelector(".note").textContent = notes[slider.value];
    slider.setAttribute("aria-valuetext", `step ${step}`);
    for (const story of section.querySelectorAll(".story")) {
      const items = [...story.querySelectorAll("li")];
      const known = items.map((item) => Number(item.dataset.step)).filter((at) => at <= step);
      const newest = known.length ? Math.max(...known) : null;
      for (const item of items) item.hidden = Number(item.dataset.step) !== newest;
    }
  };
  slider.addEventListener("input", show);
  section.classList.add("live");
  scrubber.hidden = false;
  show();
}

// Command lines: copy.
for (const command of document.querySelectorAll(".command")) {
  const button = command.querySelector("button");
  button.addEventListener("click", async () => {
    const text = command.querySelector("code");
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch { // no clipboard for this page: select it, so that the keyboard can copy
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
