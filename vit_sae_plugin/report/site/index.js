"use strict";
report.open().then((atlas) => {
  const { el, format } = report;
  const { facts, latents } = atlas;
  const n = latents.id.length;
  const rowHeight = 69;
  const leading = report.leadingClasses(atlas);
  const filters = openFilters(atlas);
  const { hasEntropy, fields } = filters;
  const control = (id) => document.getElementById(id);
  const measures = Object.keys(atlas.measures);
  const needs = { class: leading.size, entropy: hasEntropy, labels: leading.size + hasEntropy, measures: measures.length };
  for (const [kind, there] of Object.entries(needs)) {
    if (!there) for (const part of document.querySelectorAll(`[data-needs="${kind}"]`)) part.hidden = true;
  }
  document.title = atlas.title;
  report.navigation(atlas, "index.html");
  control("title").textContent = atlas.title;
  control("facts").append(
    el("b", {}, format.count(facts.d_sae)), ` latents of a ${facts.architecture} SAE`,
    facts.model ? ` on ${facts.model} (${facts.weights})` : ` on a model of ${facts.weights}`, `, over `, el("b", {}, format.count(facts.n_images)),
    ` images of ${facts.data}. `, `${format.count(facts.n_dead)} never fire (dead), ${format.count(facts.n_dense)} fire on more than `,
    `${format.number(100 * facts.dense_frequency)} % of all tokens (dense).`,
    facts.n_skipped_images ? ` ${format.count(facts.n_skipped_images)} images could not be read.` : "",
    n < facts.n_live ? ` This report shows ${format.count(n)} of the ${format.count(facts.n_live)} that fire.` : "");
  control("hashes").append("Made from ", ...Object.entries(facts.hashes).flatMap(([what, hash], k) =>
    [k ? ", " : "", `${what} `, el("code", { title: `SHA-256 ${hash}` }, hash.slice(0, 8))]), ".");

  const columns = [
    { key: "id", title: "Latent", class: "left", first: "ascending" },
    { key: null, title: "Reference images", class: "left" },
    { key: "what", title: "", class: "left", first: "ascending" },
    { key: "share", title: "Share of class", first: "descending" },
    { key: "frequency", title: "Frequency", first: "descending" },
    { key: "mean", title: "Mean act.", class: "medium", first: "descending" },
    { key: "max", title: "Max act.", class: "wide", first: "descending" },
    { key: "entropy", title: "Label entropy", first: "ascending" },
  ].filter(({ key }) => hasEntropy || key !== "entropy");
  // The further measure that is chosen stands where the largest activation else does.
  const shownColumns = () => columns.filter(({ key }) => key !== "share" || view.get("class")).map((column) => {
    const measure = column.key === "max" ? filters.measureOf(view) : null;
    return measure === null ? column : { ...column, key: "measure", title: report.measureName(measure) };
  });
  const whatColumn = columns.find(({ key }) => key === "what");
  const table = document.querySelector(".table");
  table.classList.toggle("unlabelled", !hasEntropy);
  let view = new URLSearchParams();
  let sort = {};
  let shown = [];

  [...leading].sort((a, b) => report.className(atlas, a).localeCompare(report.className(atlas, b)) || a - b)
    .forEach((index) => control("class").append(el("option", { value: index }, report.className(atlas, index))));

  for (const name of measures) control("measure").append(el("option", { value: name }, report.measureName(name)));

  function nameChanged() {
    const some = atlas.naming.all().length > 0;
    document.querySelector('[data-needs="names"]').hidden = !some;
    whatColumn.title = leading.size ? "Name, classes" : some ? "Name" : "";
  }

  // What the fields and the sorting say, as an address does.
  function read(order) {
    const said = new URLSearchParams();
    for (const field of fields) {
      const input = control(field);
      const value = input.type === "checkbox" ? (input.checked ? "1" : "") : input.value;
      if (value) said.set(field, value);
    }
    if (order) said.set("sort", `${order.key},${order.direction}`);
    return said;
  }

  function recall() {
    const { state } = report.address();
    for (const field of fields) {
      const input = control(field);
      if (input.type === "checkbox") input.checked = state.get(field) === "1";
      else input.value = state.get(field) || "";
    }
    view = filters.viewOf(state);
  }

  function choose() {
    const found = filters.choose(view);
    ({ shown, sort } = found);
    table.classList.toggle("with-share", Boolean(view.get("class")));
    report.remember({ ...Object.fromEntries(fields.map((field) => [field, view.get(field)])), sort: view.get("sort") });
    control("found").replaceChildren(el("b", {}, format.count(shown.length)),
      shown.length === n ? " latents" : ` of ${format.count(n)} latents`,
      ...found.crossed.map((what) => el("span", { class: "hint" }, `${what}: the lower limit is above the upper one`)));
    let flags = null;
    if (shown.length < n) {
      flags = new Uint8Array(n);
      for (const i of shown) flags[i] = 1;
    }
    scatter.keep(flags);
    head();
    rows(true);
  }

  function head() {
    control("head").replaceChildren(...shownColumns().map((column) => {
      const sorted = column.key !== null && sort.key === column.key;
      const cell = el("span", { role: "columnheader", class: column.class === "left" ? "left" : `right ${column.class || ""}`,
        "aria-sort": sorted ? sort.direction : null });
      cell.append(column.key === null ? column.title : el("button", {
        type: "button", "data-sort": column.key,
        onclick: () => {
          const opposite = { ascending: "descending", descending: "ascending" };
          view = read({ key: column.key, direction: sorted ? opposite[sort.direction] : column.first });
          choose();
          document.querySelector(`[data-sort="${column.key}"]`).focus({ preventScroll: true });
        },
      }, column.title));
      return cell;
    }));
  }

  // Only the rows in view exist; the space of all of them is kept by the height of their parent.
  const body = control("rows");
  const drawn = new Map();
  function rows(afresh) {
    if (afresh) { body.replaceChildren(); drawn.clear(); }
    body.style.height = `${shown.length * rowHeight}px`;
    if (!shown.length) {
      if (afresh) body.append(el("p", { class: "empty" }, "No latent matches. ",
        el("button", { type: "button", onclick: () => control("clear").click() }, "Clear filters")));
      body.style.height = "auto";
      return;
    }
    const top = -body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / rowHeight) - 3);
    const last = Math.min(shown.length, Math.ceil((top + window.innerHeight) / rowHeight) + 3);
    for (const [position, row] of drawn) {
      if (position < first || position >= last) { row.remove(); drawn.delete(position); }
    }
    for (let position = first; position < last; position++) draw(position);
  }

  function draw(position) {
    if (!drawn.has(position)) {
      const row = makeRow(shown[position]);
      row.style.top = `${position * rowHeight}px`;
      row.dataset.position = position;
      drawn.set(position, row);
      body.append(row);
    }
    return drawn.get(position);
  }

  function makeRow(i) {
    const { title, minor } = report.describe(atlas, i);
    const measure = filters.measureOf(view);
    const cell = (text, extra = "") => el("span", { class: `num ${extra}`, role: "cell" }, text);
    return el("a", { class: "row", role: "row", href: report.latentLink(latents.id[i], String(view)), "data-latent": latents.id[i] },
      el("span", { class: "id", role: "cell" }, String(latents.id[i])),
      report.strip(atlas, i),
      el("span", { class: "what", role: "cell" }, el("div", { title }, title), el("div", { class: "minor", title: minor }, minor)),
      view.get("class") ? cell(format.share(filters.share(i, Number(view.get("class"))))) : null,
      cell(format.share(latents.frequency[i])), cell(format.number(latents.mean[i]), "medium"),
      cell(format.number(measure === null ? latents.max[i] : atlas.measures[measure][i]), "wide"), hasEntropy ? cell(format.entropy(latents.entropy[i])) : null);
  }

  function goTo(position) {
    if (position < 0) { control("search").focus(); return; }
    if (position >= shown.length) return;
    const row = draw(position);
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
    rows(false);
  }
  body.addEventListener("keydown", (event) => {
    const row = event.target.closest(".row");
    if (!row || event.metaKey || event.ctrlKey || event.altKey) return;
    const here = Number(row.dataset.position);
    const page = Math.max(1, Math.floor(window.innerHeight / rowHeight) - 2);
    const next = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: Math.min(here + page, shown.length - 1),
      PageUp: Math.max(here - page, 0), Home: 0, End: shown.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    goTo(next);
  });
  control("search").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); goTo(0); }
  });

  // The table as it is filtered and sorted, with every column.
  function csv() {
    const names = (indices) => indices.map((index) => report.className(atlas, index)).join("; ");
    const name = (index) => (index === null ? "" : report.className(atlas, index));
    const all = [
      ["latent", (i) => latents.id[i]],
      ["name", (i) => atlas.naming.of(latents.id[i])?.name],
      ["note", (i) => atlas.naming.of(latents.id[i])?.note],
      ["frequency", (i) => latents.frequency[i]],
      ["token_frequency", (i) => latents.token_frequency[i]],
      ["n_active_images", (i) => latents.n_active_images[i]],
      ["mean_activation", (i) => latents.mean[i]],
      ["max_activation", (i) => latents.max[i]],
      ["label_entropy", (i) => latents.entropy[i]],
      ["label_std", (i) => latents.std[i]],
      ...measures.map((name) => [name, (i) => atlas.measures[name][i]]),
      ["is_dense", (i) => Boolean(latents.dense[i])],
      ["reference_classes", (i) => names(latents.classes[i])],
      ["top_class_name", (i) => name(latents.top_class[i])],
      ["top_class_name_by_rate", (i) => name(latents.top_class_by_rate[i])],
    ];
    const index = view.get("class");
    if (index) all.push([`share of ${report.className(atlas, index)}`, (i) => filters.share(i, Number(index))]);
    const cell = (value) => {
      const text = String(value ?? "");
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = [all.map(([title]) => cell(title)), ...shown.map((i) => all.map(([, value]) => cell(value(i))))];
    return `${lines.map((line) => line.join(",")).join("\r\n")}\r\n`;
  }
  control("csv").addEventListener("click", () => report.save("latents.csv", csv(), "text/csv"));

  const scatter = drawScatter(atlas, control("scatter"), document.querySelector(".tip"), {
    onOpen: (latent) => { location.href = report.latentLink(latent, String(view)); },
    onSelect: ({ frequency, mean }) => {
      const short = (value) => Number(value.toPrecision(3));
      control("frequency-low").value = short(frequency[0] * 100);
      control("frequency-high").value = short(frequency[1] * 100);
      control("mean-low").value = short(mean[0]);
      control("mean-high").value = short(mean[1]);
      changed();
    },
  });
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; rows(false); });
  };
  function changed(event) {
    // another class is sorted by its share, another measure by its value, until one sorts otherwise
    const keep = view.get("sort") && !["class", "measure"].includes(event?.target.id) ? sort : null;
    view = read(keep);
    if (sort.key === "measure" && filters.measureOf(view) === null) view.delete("sort");
    if (sort.key === "share" && !view.get("class")) view.delete("sort");
    choose();
  }
  window.addEventListener("scroll", soon, { passive: true });
  window.addEventListener("resize", soon);
  window.addEventListener("hashchange", () => { recall(); choose(); });
  document.addEventListener("namechange", () => { nameChanged(); choose(); });
  control("filters").addEventListener("input", changed);
  control("clear").addEventListener("click", () => { control("filters").reset(); changed(); });
  nameChanged();
  recall();
  choose();
}).catch(report.fail);
