const PAGE = 50;
const KINDS = { reference: "Reference", generated: "Generated", match: "Match map", background: "Background map" };
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const LABELS = { sample_id: "Sample", method: data.training ? "Step" : "Method", concept: "Concept", state: "State", prompt: "Prompt" };

// Every text goes into the page by textContent: nothing of the table is read as HTML.
const element = (tag, attributes = {}, ...content) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
};

// A button without effect keeps the focus, which a disabled one would lose.
const block = (id, isBlocked) => byId(id).setAttribute("aria-disabled", String(isBlocked));
const press = (id, action) =>
  byId(id).addEventListener("click", () => byId(id).getAttribute("aria-disabled") === "true" || action());

const text = (name, row) => {
  const column = data.texts[name];
  return column ? column.values[column.rows ? column.rows[row] : row] : "";
};
const score = (name, row) => data.scores[name][row];
const shown = (value) => (typeof value === "number" ? value.toFixed(3) : value === "nan" ? "undefined" : "-");
const scoreNames = Object.keys(data.scores);

const pictures = new Map();
const known = [];
for (const block of document.querySelectorAll("script.pictures")) {
  const found = JSON.parse(block.textContent);
  for (const [kind, image] of Object.entries(found.images)) {
    if (typeof image === "number") found.images[kind] = known[image];
    else known.push(image);
  }
  pictures.set(found.row, found);
  block.remove();
}

const label = (kind) => kind.replace(/^\w+/, (word) => KINDS[word]);
const figures = (row) => {
  const list = element("div", { class: "pictures" });
  for (const [kind, source] of Object.entries(pictures.get(row)?.images ?? {})) {
    const image = element("img", { src: source, alt: `${label(kind)} of sample ${text("sample_id", row)}` });
    list.append(element("figure", {}, image, element("figcaption", {}, label(kind))));
  }
  return list;
};
const notes = (row) => (pictures.get(row)?.notes ?? []).map((note) => element("p", { class: "note" }, note));

const scoreList = (row, chosen) => {
  const list = element("span", { class: "scores" });
  for (const name of scoreNames) {
    const part = element("span", name === chosen ? { class: "chosen" } : {}, `${name.toUpperCase()} `);
    part.append(element("b", {}, shown(score(name, row))));
    list.append(part, " ");
  }
  return list;
};

const prompt = (row) => {
  const whole = text("prompt", row);
  const subject = text("subject", row);
  const line = element("p", { class: "prompt", dir: "auto" });
  const start = subject ? whole.toLowerCase().indexOf(subject.toLowerCase()) : -1;
  // Lower case may have another length, as that of a dotted capital I.
  if (start < 0 || whole.toLowerCase().length !== whole.length) line.append(whole);
  else {
    const end = start + subject.length;
    line.append(whole.slice(0, start), element("mark", {}, whole.slice(start, end)), whole.slice(end));
  }
  return line;
};

const opener = (row, label) => {
  const name = label === text("sample_id", row) ? label : `${label}, sample ${text("sample_id", row)}`;
  const button = element("button", { type: "button", class: "open", "data-row": row, "aria-label": name });
  button.append(element("bdi", {}, label));
  return button;
};

const shot = (row, chosen, tag) => {
  const name = text("method", row);
  const heading = element("div", { class: "heading" }, element("div", {}, opener(row, name)), scoreList(row, chosen));
  return element(tag, { class: tag === "article" ? "card" : "shot" }, heading, prompt(row), figures(row), ...notes(row));
};

const drawGroups = () => {
  const tabs = element("div", { class: "tabs", role: "tablist", "aria-label": "Chosen samples" });
  const panels = data.groups.map((group, index) => {
    const cards = element("div", { class: "cards" });
    for (const rows of group.samples) {
      if (rows.length === 1) {
        cards.append(shot(rows[0], group.score, "article"));
        continue;
      }
      const difference = score(group.score, rows[0]) - score(group.score, rows[1]);
      const label = element("p", { class: "difference quiet" }, `Difference in ${group.score.toUpperCase()}: `);
      label.append(element("b", {}, difference.toFixed(3)));
      cards.append(element("article", { class: "card pair" }, label, ...rows.map((row) => shot(row, group.score, "div"))));
    }
    const rows = group.samples.flat();
    cards.addEventListener("click", (event) => {
      const button = event.target.closest("button.open");
      if (button) open(Number(button.dataset.row), rows, button);
    });
    const panel = element("div", { class: "group", role: "tabpanel", id: `group-${index}`, "aria-labelledby": `tab-${index}` });
    panel.append(element("h3", {}, group.title), cards);
    const tab = element("button", { type: "button", role: "tab", id: `tab-${index}`, "aria-controls": `group-${index}` }, group.title);
    tab.addEventListener("click", () => select(index));
    tabs.append(tab);
    return panel;
  });
  const select = (chosen) => {
    panels.forEach((panel, index) => {
      panel.hidden = index !== chosen;
      tabs.children[index].setAttribute("aria-selected", String(index === chosen));
      tabs.children[index].tabIndex = index === chosen ? 0 : -1;
    });
  };
  tabs.addEventListener("keydown", (event) => {
    const from = [...tabs.children].indexOf(document.activeElement);
    const target = { ArrowRight: from + 1, ArrowLeft: from - 1 + panels.length, Home: 0, End: panels.length - 1 }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    const next = target % panels.length;
    select(next);
    tabs.children[next].focus();
  });
  if (panels.length) {
    byId("groups").append(tabs, ...panels);
    select(0);
  } else byId("groups").append(element("p", { class: "quiet" }, "No sample has a score."));
};

// The table: rows in the chosen order, those that the filters keep, one page at a time.
const pictured = [...pictures.values()].some((found) => found.images.generated);
const columns = ["sample_id", "method", "concept", ...scoreNames, "prompt", "state"];
let order = Array.from({ length: data.count }, (_, row) => row);
let kept = order;
let page = 0;
let sorting = { name: null, descending: false };
let searched = null;

const collator = new Intl.Collator(undefined, { numeric: true });
const sort = (name) => {
  sorting = { name, descending: sorting.name === name && !sorting.descending };
  const sign = sorting.descending ? -1 : 1;
  order = Array.from({ length: data.count }, (_, row) => row);
  if (name in data.scores) {
    const values = data.scores[name].map((value) => (typeof value === "number" ? value : NaN));
    // Samples without the score come last in both directions.
    order.sort((a, b) => isNaN(values[a]) - isNaN(values[b]) || sign * (values[a] - values[b] || 0) || a - b);
  } else {
    const column = data.texts[name];
    const ranked = column.values.map((_, index) => index).sort((a, b) => collator.compare(column.values[a], column.values[b]));
    const rank = new Array(ranked.length);
    ranked.forEach((index, position) => (rank[index] = position));
    const of = (row) => rank[column.rows ? column.rows[row] : row];
    order.sort((a, b) => sign * (of(a) - of(b)) || a - b);
  }
  filter();
};

const searchTexts = () => {
  searched ??= Array.from({ length: data.count }, (_, row) =>
    ["sample_id", "prompt", "subject", ...data.files, "error", "left_out"].map((name) => text(name, row)).join("\n").toLowerCase());
  return searched;
};

const filter = () => {
  const chosen = (name) => byId(`filter-${name}`).value;
  const words = chosen("text").toLowerCase().split(/\s+/).filter(Boolean);
  const texts = words.length ? searchTexts() : [];
  const named = ["method", "concept", "state"].filter((name) => chosen(name));
  const wanted = Object.fromEntries(named.map((name) => [name, data.texts[name].values[Number(chosen(name))]]));
  const [low, high] = ["low", "high"].map((name) => (chosen(name) === "" ? null : Number(chosen(name))));
  const values = data.scores[chosen("score")];
  kept = order.filter((row) => {
    if (!words.every((word) => texts[row].includes(word))) return false;
    if (!named.every((name) => text(name, row) === wanted[name])) return false;
    if (low === null && high === null) return true;
    return typeof values[row] === "number" && (low === null || values[row] >= low) && (high === null || values[row] <= high);
  });
  page = 0;
  draw();
};

const cell = (name, row) => {
  if (name in data.scores) return element("td", { class: "number" }, shown(score(name, row)));
  if (name === "sample_id") return element("th", { scope: "row" }, opener(row, text(name, row)));
  if (name === "state") return element("td", { class: text(name, row) === "scored" ? "quiet" : "state" }, text(name, row));
  const content = element("div", { dir: "auto" }, text(name, row));
  return element("td", { class: "text" }, content);
};

const draw = () => {
  const pages = Math.max(1, Math.ceil(kept.length / PAGE));
  const count = (number) => number.toLocaleString("en");
  const all = kept.length === data.count;
  byId("found").textContent = all ? `${count(data.count)} samples` : `${count(kept.length)} of ${count(data.count)} samples`;
  byId("page").textContent = `Page ${count(page + 1)} of ${count(pages)}`;
  block("page-back", page === 0);
  block("page-next", page === pages - 1);
  const body = kept.slice(page * PAGE, (page + 1) * PAGE).map((row) => {
    const line = element("tr", { "data-row": row });
    if (pictured) {
      const source = pictures.get(row)?.images.generated;
      line.append(element("td", { class: "picture" }, source ? element("img", { src: source, alt: "", loading: "lazy" }) : ""));
    }
    line.append(...columns.map((name) => cell(name, row)));
    return line;
  });
  byId("table").tBodies[0].replaceChildren(...body);
  for (const header of byId("table").tHead.rows[0].cells) {
    if (header.dataset.name && header.dataset.name === sorting.name) {
      header.setAttribute("aria-sort", sorting.descending ? "descending" : "ascending");
    } else header.removeAttribute("aria-sort");
  }
};

const turn = (step) => {
  page += step;
  draw();
  byId("samples").scrollIntoView();
};

const drawTable = () => {
  const header = byId("table").tHead.rows[0];
  if (pictured) header.append(element("td", {}));
  for (const name of columns) {
    const button = element("button", { type: "button" }, LABELS[name] ?? name.toUpperCase());
    button.addEventListener("click", () => sort(name));
    header.append(element("th", { scope: "col", "data-name": name, class: name in data.scores ? "number" : "" }, button));
  }
  for (const name of ["method", "concept", "state"]) {
    const options = data.texts[name].values.map((value, index) => [value, index]);
    options.sort((a, b) => collator.compare(a[0], b[0]));
    byId(`filter-${name}`).append(element("option", { value: "" }, "all"));
    for (const [value, index] of options) {
      const label = value.length > 80 ? `${value.slice(0, 80)} …` : value;
      byId(`filter-${name}`).append(element("option", { value: index, dir: "auto" }, label));
    }
  }
  for (const name of scoreNames) byId("filter-score").append(element("option", { value: name }, name.toUpperCase()));
  const form = byId("filters");
  // A text field's change comes when it is left, and redrawing then would swallow the click that leaves it.
  form.addEventListener("input", (event) => event.target.tagName === "INPUT" && filter());
  form.addEventListener("change", (event) => event.target.tagName === "SELECT" && filter());
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  press("page-back", () => turn(-1));
  press("page-next", () => turn(1));
  byId("table").addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (button) open(Number(button.dataset.row), kept, button);
  });
  draw();
};

// One sample in a dialog, and the way to the next one of the list that it was opened from.
const dialog = byId("sample");
let rows = [];
let place = 0;
let opened = null;

const open = (row, list, button) => {
  rows = list;
  place = list.indexOf(row);
  opened = button;
  drawSample();
  dialog.showModal();
  byId("sample-body").focus({ preventScroll: true });
};

const drawSample = () => {
  const row = rows[place];
  const method = element("bdi", { class: "quiet" }, text("method", row));
  byId("sample-title").replaceChildren(element("bdi", {}, text("sample_id", row)), " ", method);
  byId("sample-place").textContent = `${(place + 1).toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  block("sample-back", place === 0);
  block("sample-next", place === rows.length - 1);
  const cells = element("dl", { class: "cells" });
  const add = (name, value) => {
    if (value === "" || value === null || value === undefined) return;
    cells.append(element("div", {}, element("dt", {}, element("bdi", {}, name)), element("dd", { dir: "auto" }, String(value))));
  };
  for (const name of Object.keys(data.texts)) if (!["sample_id", "method", "prompt"].includes(name)) add(name, text(name, row));
  for (const name of Object.keys(data.numbers)) add(name, data.numbers[name][row]);
  const without = "No pictures: this report holds those of the chosen samples only.";
  const missing = pictures.has(row) ? [] : [element("p", { class: "quiet" }, without)];
  byId("sample-body").replaceChildren(scoreList(row), prompt(row), figures(row), ...missing, ...notes(row), cells);
  dialog.scrollTop = 0;
};

const step = (by) => {
  if (place + by < 0 || place + by >= rows.length) return;
  place += by;
  drawSample();
};
press("sample-back", () => step(-1));
press("sample-next", () => step(1));
byId("sample-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("close", () => opened?.isConnected && opened.focus());
dialog.addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  step(by);
});

for (const button of document.querySelectorAll("#problems button.open")) {
  button.addEventListener("click", () => {
    const list = [...document.querySelectorAll("#problems button.open")].map((each) => Number(each.dataset.row));
    open(Number(button.dataset.row), list, button);
  });
}
if (byId("groups")) drawGroups();
drawTable();
