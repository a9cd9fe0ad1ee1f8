"use strict";
report.load("atlas").then((atlas) => {
  const { el, format } = report;
  const { facts, latents } = atlas;
  const n = latents.id.length;
  const rowHeight = 69;
  const leading = report.leadingClasses(atlas);
  const hasEntropy = latents.entropy.some((value) => value !== null);
  for (const [there, kind] of [[leading.size, "class"], [hasEntropy, "entropy"], [leading.size + hasEntropy, "labels"]]) {
    if (!there) for (const part of document.querySelectorAll(`[data-needs="${kind}"]`)) part.hidden = true;
  }
  document.title = atlas.title;
  report.navigation(atlas, "index.html");
  document.getElementById("title").textContent = atlas.title;
  document.getElementById("facts").append(
    el("b", {}, format.count(facts.d_sae)), ` latents of a ${facts.architecture} SAE`,
    facts.model ? ` on ${facts.model}` : "", `, over `, el("b", {}, format.count(facts.n_images)),
    ` images of ${facts.data}. `, `${format.count(facts.n_dead)} never fire (dead), ${format.count(facts.n_dense)} fire on more than `,
    `${format.number(100 * facts.dense_frequency)} % of all tokens (dense).`,
    facts.n_skipped_images ? ` ${format.count(facts.n_skipped_images)} images could not be read.` : "",
    n < facts.n_live ? ` This report shows ${format.count(n)} of the ${format.count(facts.n_live)} that fire.` : "");
  document.getElementById("hashes").append("Made from ", ...Object.entries(facts.hashes).flatMap(([what, hash], k) =>
    [k ? ", " : "", `${what} `, el("code", { title: `SHA-256 ${hash}` }, hash.slice(0, 8))]), ".");

  // What a search looks through besides the latent's number, in lower case.
  const words = latents.id.map((_, i) =>
    [latents.name[i] || "", ...latents.classes[i].map((c) => report.className(atlas, c))].join("\n").toLowerCase());

  const columns = [
    { key: "id", title: "Latent", class: "left", first: "ascending", value: (i) => latents.id[i] },
    { key: null, title: "Reference images", class: "left" },
    { key: "what", title: leading.size ? "Name, classes" : latents.name.some(Boolean) ? "Name" : "", class: "left", first: "ascending",
      value: (i) => report.describe(atlas, i).title.toLowerCase() },
    { key: "frequency", title: "Frequency", first: "descending", value: (i) => latents.frequency[i] },
    { key: "mean", title: "Mean act.", class: "medium", first: "descending", value: (i) => latents.mean[i] },
    { key: "max", title: "Max act.", class: "wide", first: "descending", value: (i) => latents.max[i] },
    { key: "entropy", title: "Label entropy", first: "ascending", value: (i) => latents.entropy[i] },
  ].filter(({ key }) => hasEntropy || key !== "entropy");
  document.querySelector(".table").classList.toggle("unlabelled", !hasEntropy);
  const control = (id) => document.getElementById(id);
  const fields = ["search", "class", "frequency-low", "frequency-high", "mean-low", "mean-high", "entropy-low",
    "entropy-high", "hide-dense"];
  const usual = hasEntropy ? "entropy,ascending" : "frequency,descending";
  let sort = {};
  let shown = [];

  [...leading].sort((a, b) => report.className(atlas, a).localeCompare(report.className(atlas, b)) || a - b)
    .forEach((index) => control("class").append(el("option", { value: index }, report.className(atlas, index))));

  function remember() {
    const state = new URLSearchParams();
    for (const field of fields) {
      const input = control(field);
      const value = input.type === "checkbox" ? (input.checked ? "1" : "") : input.value;
      if (value) state.set(field, value);
    }
    state.set("sort", `${sort.key},${sort.direction}`);
    report.keepView(`#${state}`);
    try { history.replaceState(null, "", `#${state}`); } catch { /* some browsers forbid it on disk */ }
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) {
      const input = control(field);
      if (input.type === "checkbox") input.checked = state.get(field) === "1";
      else input.value = state.get(field) || "";
    }
    const wanted = (state.get("sort") || usual).split(",");
    const [key, direction] = columns.some((column) => column.key === wanted[0]) ? wanted : usual.split(",");
    sort = { key, direction };
  }

  function limit(id, scale = 1) {
    const text = control(id).value;
    return text === "" ? null : Number(text) / scale;
  }

  function choose() {
    const text = control("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const finds = (i, word) => words[i].includes(word) || String(latents.id[i]).startsWith(word);
    const wanted = control("class").value;
    const ranges = [
      ["frequency", latents.frequency, limit("frequency-low", 100), limit("frequency-high", 100)],
      ["mean act.", latents.mean, limit("mean-low"), limit("mean-high")],
      ["entropy", latents.entropy, limit("entropy-low"), limit("entropy-high")],
    ];
    const hideDense = control("hide-dense").checked;
    shown = [];
    for (let i = 0; i < n; i++) {
      if (!text.every((word) => finds(i, word))) continue;
      if (wanted !== "" && !latents.classes[i].includes(Number(wanted))) continue;
      if (hideDense && latents.dense[i]) continue;
      if (ranges.some(([, values, low, high]) => (low !== null && !(values[i] !== null && values[i] >= low))
        || (high !== null && !(values[i] !== null && values[i] <= high)))) continue;
      shown.push(i);
    }
    const { value } = columns.find((column) => column.key === sort.key);
    const sign = sort.direction === "ascending" ? 1 : -1;
    const keys = new Map(shown.map((i) => [i, value(i)]));
    shown.sort((a, b) => {
      const [ka, kb] = [keys.get(a), keys.get(b)];
      const [noA, noB] = [ka === null || ka === "", kb === null || kb === ""];
      if (noA || noB) return noA - noB || a - b; // missing values come last either way
      return sign * (ka < kb ? -1 : ka > kb ? 1 : 0) || latents.frequency[b] - latents.frequency[a] || a - b;
    });
    // the latent whose number was typed comes first
    const typed = text.length === 1 ? shown.findIndex((i) => String(latents.id[i]) === text[0]) : -1;
    if (typed > 0) shown.unshift(...shown.splice(typed, 1));
    control("found").replaceChildren(el("b", {}, format.count(shown.length)),
      shown.length === n ? " latents" : ` of ${format.count(n)} latents`,
      ...ranges.filter(([, , low, high]) => low !== null && high !== null && low > high)
        .map(([what]) => el("span", { class: "hint" }, `${what}: the lower limit is above the upper one`)));
    scatter.keep(shown.length === n ? null : new Set(shown));
    head();
    rows(true);
    remember();
  }

  function head() {
    control("head").replaceChildren(...columns.map((column) => {
      const mine = column.key !== null && sort.key === column.key;
      const cell = el("span", { role: "columnheader", class: column.class === "left" ? "left" : `right ${column.class || ""}`,
        "aria-sort": mine ? sort.direction : null });
      cell.append(column.key === null ? column.title : el("button", {
        type: "button", "data-sort": column.key,
        onclick: () => {
          const opposite = { ascending: "descending", descending: "ascending" };
          sort = { key: column.key, direction: mine ? opposite[sort.direction] : column.first };
          choose();
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
    const first = Math.max(0, Math.floor(top / rowHeight) - 6);
    const last = Math.min(shown.length, Math.ceil((top + window.innerHeight) / rowHeight) + 6);
    for (const [position, row] of drawn) {
      if (position < first || position >= last) { row.remove(); drawn.delete(position); }
    }
    for (let position = first; position < last; position++) {
      if (drawn.has(position)) continue;
      const row = makeRow(shown[position]);
      row.style.top = `${position * rowHeight}px`;
      drawn.set(position, row);
      body.append(row);
    }
  }

  function makeRow(i) {
    const { title, minor } = report.describe(atlas, i);
    const cell = (text, extra = "") => el("span", { class: `num ${extra}`, role: "cell" }, text);
    return el("a", { class: "row", role: "row", href: report.latentLink(latents.id[i]), "data-latent": latents.id[i] },
      el("span", { class: "id", role: "cell" }, String(latents.id[i])),
      report.strip(atlas, i),
      el("span", { class: "what", role: "cell" }, el("div", { title }, title), el("div", { class: "minor", title: minor }, minor)),
      cell(format.share(latents.frequency[i])), cell(format.number(latents.mean[i]), "medium"),
      cell(format.number(latents.max[i]), "wide"), hasEntropy ? cell(format.entropy(latents.entropy[i])) : null);
  }

  const scatter = drawScatter(atlas, control("scatter"), document.querySelector(".tip"), {
    onOpen: (latent) => { location.href = report.latentLink(latent); },
    onSelect: ({ frequency, mean }) => {
      const short = (value) => Number(value.toPrecision(3));
      control("frequency-low").value = short(frequency[0] * 100);
      control("frequency-high").value = short(frequency[1] * 100);
      control("mean-low").value = short(mean[0]);
      control("mean-high").value = short(mean[1]);
      choose();
    },
  });
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; rows(false); });
  };
  window.addEventListener("scroll", soon, { passive: true });
  window.addEventListener("resize", soon);
  control("filters").addEventListener("input", choose);
  control("clear").addEventListener("click", () => { control("filters").reset(); choose(); });
  recall();
  choose();
}).catch(report.fail);
