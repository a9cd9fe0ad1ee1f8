"use strict";
// Two latents side by side: compare.html#17,42
report.open().then((atlas) => {
  const { el } = report;
  const { latents } = atlas;
  const main = document.querySelector("main");
  const filters = openFilters(atlas);
  const parts = openLatentParts(atlas);
  report.navigation(atlas, "compare.html");

  function show() {
    const ids = report.address().id.split(",");
    const positions = ids.map((id) => (/^\d+$/.test(id) ? atlas.position.get(Number(id)) : undefined));
    document.querySelector("dialog.lightbox")?.remove();
    const missing = [0, 1].find((k) => positions[k] === undefined);
    if (missing !== undefined) {
      main.replaceChildren(el("p", { class: "empty" }, parts.reasonForNone(ids[missing] ?? ""), " ", el("a", { href: "index.html" }, "All latents")));
      return;
    }
    const pair = ids.slice(0, 2).map(Number);
    document.title = `Latents ${pair.join(" and ")}`;
    Promise.all(positions.slice(0, 2).map(parts.details)).then((files) => draw(pair, positions, files)).catch(report.fail);
  }

  function draw(pair, positions, files) {
    const { state } = report.address();
    const view = String(filters.viewOf(state));
    const { shown } = filters.choose(filters.viewOf(state));
    const all = files.map((file, k) => file.latents[pair[k]]);
    const link = (one, other) => report.compareLink(one, other, view);
    const here = shown.indexOf(positions[1]);
    const step = (by, text) => {
      let place = here + by;
      if (shown[place] === positions[0]) place += by;
      return here < 0 || shown[place] === undefined ? null
        : el("a", { href: link(pair[0], latents.id[shown[place]]), rel: by < 0 ? "prev" : "next" }, text);
    };
    const asked = state.get("by");
    const rule = atlas.aggregations.includes(asked) ? asked : parts.firstRule(all[0]);
    const indices = all.map((data) => new Set(data.references[rule].map(([index]) => index)));
    const shared = [...indices[0]].filter((index) => indices[1].has(index)).length;
    const score = (kind) => [[0, 1], [1, 0]].map(([one, other]) => all[one][kind].find(([latent]) => latent === pair[other])?.[1]).find((value) => value !== undefined);
    const said = (kind, text) => { const value = score(kind); return `${text}: ${value === undefined ? "neither lists the other" : value.toFixed(2)}`; };
    main.replaceChildren(
      el("div", { class: "tools path" },
        el("a", { href: report.latentLink(pair[0], view), id: "back" }, `← latent ${pair[0]}`), el("span", { class: "gap" }),
        el("a", { href: link(pair[1], pair[0]), id: "swap" }, "swap"), step(-1, "← previous"), step(1, "next →")),
      el("h1", {}, `Latents ${pair[0]} and ${pair[1]}`),
      el("p", { class: "lead" }, `${shared} reference ${shared === 1 ? "image" : "images"} of both · ${said("similar", "alike in direction")} · ${said("coactive", "active together")}`),
      el("div", { class: "tools" }, el("span", { class: "note", style: "margin:0" }, "Reference images ranked by"),
        parts.rules(rule, (name) => { report.remember({ by: name }); draw(pair, positions, files); })),
      el("div", { class: "columns pair" }, [0, 1].map((k) => column(pair, k, positions, all[k], files[k].images, rule, indices[1 - k], link))));
  }

  function column(pair, k, positions, data, images, rule, others, link) {
    const other = el("input", { type: "number", id: k ? "right" : "left", value: pair[k], min: 0, max: atlas.facts.d_sae - 1, "aria-label": k ? "latent on the right" : "latent on the left" });
    other.addEventListener("change", () => {
      const chosen = Number(other.value);
      location.hash = (k ? link(pair[0], chosen) : link(chosen, pair[1])).split("#")[1];
    });
    return el("section", { class: "side", "data-latent": pair[k] },
      el("div", { class: "tools tight" }, el("h2", {}, el("a", { href: report.latentLink(pair[k]) }, `Latent ${pair[k]}`)), el("span", { class: "gap" }), el("label", {}, "show ", other)),
      el("p", { class: "lead", style: "margin:0" }, parts.lead(positions[k], data, images)),
      parts.numbers(positions[k]),
      parts.figures(pair[k], data, images, rule, others).grid,
      !parts.hasLabels ? null : parts.section(`classes-${k}`, "Top classes", parts.classesNote, parts.classBars(data)),
      parts.section(`activations-${k}`, "Activations", "How many tokens activate it, and how strongly.", parts.histogram(data.histogram)));
  }

  window.addEventListener("hashchange", show);
  document.addEventListener("namechange", show);
  show();
}).catch(report.fail);
