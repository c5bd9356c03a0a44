
// A training: curves of both scores by concept, and a slider through its steps.
const training = data.training;
const COLOURS = 7; // of .series-0 to .series-6; concepts after them have lines of another kind
const MANY = 8; // curves from which on they are thin
const VIEW = { width: 560, height: 240, left: 46, right: 14, top: 12, bottom: 30 };
const shape = (tag, attributes, ...content) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
};

const stepRows = new Map(training.steps.map((step) => [`step ${step}`, []]));
for (let row = 0; row < data.count; row++) stepRows.get(text("method", row)).push(row);
const rowsOfStep = [...stepRows.values()];
const conceptNames = Object.keys(training.concepts);
// An image and its earlier and later ones: of one concept, prompt and seed, of which a step may have several.
const eraOf = new Map();
const nameOf = new Map();
const history = new Map();
rowsOfStep.forEach((rows, index) => {
  const counts = new Map();
  for (const row of rows) {
    const name = ["concept", "prompt", "seed"].map((column) => text(column, row)).join("\n");
    counts.set(name, (counts.get(name) ?? 0) + 1);
    const image = `${name}\n${counts.get(name)}`;
    nameOf.set(row, image);
    eraOf.set(row, training.eras[index]);
    if (history.has(image)) history.get(image).push(row);
    else history.set(image, [row]);
  }
});
const sameImage = (row) => history.get(nameOf.get(row));
const firstOf = (row) => sameImage(row).find((other) => eraOf.get(other) === eraOf.get(row));
let highlighted = null;
let current = training.steps.length - 1;

const KINDS_OF_LINE = ["", " dashed", " dotted", " mixed"];
const series = (index) => `series-${index % COLOURS}${KINDS_OF_LINE[Math.floor(index / COLOURS) % KINDS_OF_LINE.length]}`;
const plain = (value) => Number(value.toFixed(10)).toLocaleString("en", { maximumFractionDigits: 10, useGrouping: false });
const ticks = (low, high, count) => {
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((each) => (high - low) / each <= count);
  const found = [];
  for (let number = Math.ceil(low / size); number * size <= high; number++) found.push(number * size);
  return found;
};

const chart = (name) => {
  const means = training.curves[name].map((point) => point[0]);
  const anchors = name === "cp" && highlighted !== null ? training.anchors[highlighted] ?? [] : [];
  const values = [...means, ...anchors, ...conceptNames.flatMap((concept) => training.concepts[concept][name])].filter((value) => value !== null);
  if (!values.length) return "";
  const lines = conceptNames.map((concept, index) => [training.concepts[concept][name], `curve ${series(index)}${highlighted === null || highlighted === concept ? "" : " faint"}${conceptNames.length > MANY ? " thin" : ""}`]);
  // The interval is on the axis too, unless it would leave the curves less than a quarter of it.
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const room = 1.5 * Math.max(most - least, 0.1);
  const ends = training.curves[name].flatMap((point) => (point[1] === null ? [] : [point[1], point[2]]));
  const [lowest, highest] = [Math.min(least, ...ends), Math.max(most, ...ends)];
  const isCut = lowest < least - room || highest > most + room;
  const padding = 0.06 * (most - least) || 0.02;
  const [low, high] = [Math.max(lowest, least - room) - padding, Math.min(highest, most + room) + padding];
  const [first, last] = [training.steps[0], training.steps[training.steps.length - 1]];
  const x = (step) => VIEW.left + (last === first ? 0.5 : (step - first) / (last - first)) * (VIEW.width - VIEW.left - VIEW.right);
  const y = (value) => VIEW.top + ((high - Math.min(high, Math.max(low, value))) / (high - low)) * (VIEW.height - VIEW.top - VIEW.bottom);
  const points = (line) => line.map((value, index) => (value === null ? null : [x(training.steps[index]), y(value)]));
  // Parts of a line without gaps; there is a gap where settings changed.
  const runs = (line) => {
    const found = [[]];
    line.forEach((point, index) => {
      if (!point || (index && training.eras[index] !== training.eras[index - 1])) found.push([]);
      if (point) found[found.length - 1].push(point);
    });
    return found.filter((run) => run.length);
  };
  const path = (line) => runs(points(line)).map((run) => `M${run.map((point) => point.map((each) => each.toFixed(1)).join(" ")).join("L")}`).join("");
  const shapes = [];
  for (const value of ticks(low, high, 5)) {
    shapes.push(shape("line", { class: "grid", x1: VIEW.left, x2: VIEW.width - VIEW.right, y1: y(value), y2: y(value) }));
    shapes.push(shape("text", { class: "tick", x: VIEW.left - 8, y: y(value) + 4, "text-anchor": "end" }, plain(value)));
  }
  for (const value of last === first ? [first] : ticks(first, last, 6)) {
    const anchor = x(value) > VIEW.width - VIEW.right - 20 ? "end" : "middle";
    shapes.push(shape("text", { class: "tick", x: anchor === "end" ? VIEW.width : x(value), y: VIEW.height - 8, "text-anchor": anchor }, plain(value)));
  }
  for (const [index, label] of ["floor", "ceiling"].entries()) {
    if (typeof anchors[index] !== "number") continue;
    shapes.push(shape("line", { class: "anchor", x1: VIEW.left, x2: VIEW.width - VIEW.right, y1: y(anchors[index]), y2: y(anchors[index]) }));
    shapes.push(shape("text", { class: "tick", x: VIEW.width - VIEW.right, y: y(anchors[index]) - 4, "text-anchor": "end" }, label));
  }
  // The band of the interval: its upper ends from left to right, then its lower ends back.
  const band = training.curves[name].map((point, index) => (point[1] === null ? null : [x(training.steps[index]), y(point[2]), y(point[1])]));
  for (const run of runs(band)) {
    const outline = [...run.map((end) => [end[0], end[1]]), ...run.toReversed().map((end) => [end[0], end[2]])];
    shapes.push(shape("path", { class: "band", d: `M${outline.map((point) => point.join(" ")).join("L")}Z` }));
  }
  for (const [line, kind] of [...lines, [means, "curve mean"]]) {
    shapes.push(shape("path", { class: kind, d: path(line) }));
    for (const [index, point] of points(line).entries()) {
      if (point && (index === current || training.steps.length === 1)) shapes.push(shape("circle", { class: kind, cx: point[0], cy: point[1], r: kind === "curve mean" ? 4.5 : 3 }));
    }
  }
  shapes.push(shape("line", { class: "cursor", x1: x(training.steps[current]), x2: x(training.steps[current]), y1: VIEW.top, y2: VIEW.height - VIEW.bottom }));
  if (isCut) shapes.push(shape("text", { class: "tick", x: VIEW.left + 6, y: VIEW.top + 10 }, "the interval is wider than the axis"));
  const named = (value) => (value === null ? "undefined" : value.toFixed(3));
  const label = `${name.toUpperCase()} from ${named(means[0])} at step ${first} to ${named(means[means.length - 1])} at step ${last}`;
  const svg = shape("svg", { viewBox: `0 0 ${VIEW.width} ${VIEW.height}`, role: "img", "aria-label": label }, ...shapes);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const clicked = ((event.clientX - box.left) / box.width) * VIEW.width;
    const distances = training.steps.map((step) => Math.abs(x(step) - clicked));
    choose(distances.indexOf(Math.min(...distances)));
  });
  return element("figure", { class: "chart" }, element("figcaption", {}, name === "cp" ? "Concept preservation (CP)" : "Prompt following (PF)"), svg);
};

const keyOf = (label, kind, values) => {
  const button = element("button", { type: "button", class: "key" }, element("i", { class: `swatch line ${kind}` }), element("bdi", {}, label));
  for (const name of scoreNames) {
    const value = values[name];
    button.append(" ", element("span", { class: "quiet" }, `${name.toUpperCase()} ${value === null ? "-" : value.toFixed(3)}`));
  }
  return button;
};

const drawCurves = () => {
  const focused = [...document.querySelectorAll("#curves .key")].indexOf(document.activeElement);
  const keys = element("div", { class: "keys", role: "group", "aria-label": "Concepts" });
  const of = (get) => Object.fromEntries(scoreNames.map((name) => [name, get(name)]));
  const buttons = [[null, keyOf("mean", "mean", of((name) => training.curves[name][current][0]))]];
  conceptNames.forEach((concept, index) => buttons.push([concept, keyOf(concept, series(index), of((name) => training.concepts[concept][name][current]))]));
  for (const [concept, button] of buttons) {
    button.setAttribute("aria-pressed", String(highlighted === concept));
    button.addEventListener("click", () => {
      highlighted = highlighted === concept ? null : concept;
      drawCurves();
    });
    keys.append(button);
  }
  byId("curves").replaceChildren(element("div", { class: "charts" }, ...scoreNames.map(chart)), keys);
  if (focused >= 0) keys.children[focused].focus();
};

const difference = (row, name) => {
  const first = firstOf(row);
  const [value, start] = [score(name, row), score(name, first)];
  if (typeof value !== "number" || typeof start !== "number" || first === row) return "";
  return element("span", { class: "quiet" }, ` ${value < start ? "−" : "+"}${Math.abs(value - start).toFixed(3)}`);
};

const picture = (row, kind) => {
  const image = element("img", { src: pictures.get(row).images[kind], alt: `${label(kind)} of image ${text("sample_id", row)}`, loading: "lazy" });
  return element("figure", {}, image, element("figcaption", {}, label(kind)));
};

const drawImages = () => {
  const drawn = rowsOfStep[current].filter((row) => pictures.get(row)?.images.generated);
  const groups = new Map();
  for (const row of drawn) groups.set(text("concept", row), [...(groups.get(text("concept", row)) ?? []), row]);
  const blocks = [...groups].map(([concept, rows]) => {
    const shots = element("div", { class: "shots" });
    for (const row of rows) {
      const scores = element("span", { class: "scores" });
      for (const name of scoreNames) scores.append(element("span", {}, `${name.toUpperCase()} `, element("b", {}, shown(score(name, row))), difference(row, name)));
      const both = element("button", { type: "button", class: "open both", "aria-label": `Open image ${text("sample_id", row)}` }, picture(row, "generated"), picture(row, "match"));
      both.addEventListener("click", () => open(row, sameImage(row), both));
      shots.append(element("div", { class: "shot" }, both, scores, prompt(row)));
    }
    return element("div", { class: "concept" }, element("h4", {}, element("bdi", {}, concept)), element("div", { class: "strip" }, picture(rows[0], "reference"), shots));
  });
  const without = pictures.size
    ? "The images of this step are left out, to limit the size of the report; its scores are in the curves and in the table."
    : "There are no images, because the validations drew no panel.";
  byId("step-images").replaceChildren(...(blocks.length ? blocks : [element("p", { class: "quiet" }, without)]));
};

const choose = (index) => {
  current = Math.min(training.steps.length - 1, Math.max(0, index));
  byId("step").value = current;
  byId("step").setAttribute("aria-valuetext", `step ${training.steps[current]}`);
  byId("step-name").textContent = `step ${training.steps[current].toLocaleString("en")} (${current + 1} of ${training.steps.length})`;
  block("step-back", current === 0);
  block("step-next", current === training.steps.length - 1);
  drawCurves();
  drawImages();
};
byId("step").addEventListener("input", () => choose(Number(byId("step").value)));
press("step-back", () => choose(current - 1));
press("step-next", () => choose(current + 1));
choose(current);
