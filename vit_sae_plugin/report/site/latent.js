"use strict";
report.open().then((atlas) => {
  const { el, format } = report;
  const { latents } = atlas;
  const main = document.querySelector("main");
  const filters = openFilters(atlas);
  const parts = openLatentParts(atlas);
  const { section } = parts;
  let renamed = () => {};
  report.navigation(atlas, "latent.html");

  function show() {
    const { id } = report.address();
    const position = /^\d+$/.test(id) ? atlas.position.get(Number(id)) : undefined;
    document.querySelector("dialog.lightbox")?.remove();
    main.replaceChildren();
    window.scrollTo(0, 0);
    if (position === undefined) {
      main.append(el("p", { class: "empty" }, parts.reasonForNone(id), " ", el("a", { href: "index.html" }, "All latents")));
      return;
    }
    document.title = `Latent ${id}`;
    parts.details(position).then((data) => draw(Number(id), position, data)).catch(report.fail);
  }

  function draw(latent, position, { images, latents: all }) {
    const data = all[latent];
    const { state } = report.address();
    const view = filters.viewOf(state);
    const { shown } = filters.choose(view);
    const here = shown.indexOf(position);
    const step = (by, text) => {
      const other = here < 0 ? undefined : shown[here + by];
      return other === undefined ? null : el("a", { href: report.latentLink(latents.id[other], String(view)), rel: by < 0 ? "prev" : "next" }, text);
    };
    const beside = (other) => report.compareLink(latent, other, String(view));
    const [nearest] = data.similar.map(([other]) => other).filter((other) => atlas.position.has(other));
    const place = here < 0 ? `not among the ${format.count(shown.length)} filtered`
      : `${format.count(here + 1)} of ${format.count(shown.length)}${shown.length < latents.id.length ? " filtered" : ""}`;
    const lead = el("p", { class: "lead", style: "margin-bottom:0" }, parts.lead(position, data, images));
    main.replaceChildren(
      el("div", { class: "tools path" },
        el("a", { href: `index.html#${view}`, id: "back" }, "← all latents"), el("span", { class: "gap" }),
        nearest === undefined ? null : el("a", { href: beside(nearest), id: "beside" }, "side by side"),
        el("span", { id: "place" }, place), step(-1, "← previous"), step(1, "next →")),
      el("div", { class: "heading" }, el("div", {}, el("h1", {}, `Latent ${latent}`), lead), naming(latent)),
      parts.numbers(position),
      references(latent, data, images),
      el("div", { class: "columns" },
        !parts.hasLabels ? null : section("classes", "Top classes", parts.classesNote, parts.classBars(data)),
        section("activations", "Activations", "How many tokens activate it, and how strongly.", parts.histogram(data.histogram)),
        section("coactive", "Active together", "Latents that fire on the same images: images with both ÷ images with either.", parts.relatives(data.coactive, { view: String(view), beside })),
        section("similar", "Alike in direction", "Latents that write a similar direction: cosine of the decoder rows.", parts.relatives(data.similar, { view: String(view), beside }))),
      ...explainedHere(latent));
    renamed = () => lead.replaceChildren(...parts.lead(position, data, images));
  }

  // What the reader calls it; kept by the browser as it is typed.
  function naming(latent) {
    const entry = atlas.naming.of(latent);
    const name = el("input", { type: "text", id: "name", value: entry?.name ?? "", maxlength: 200, autocomplete: "off", placeholder: "what you call it" });
    const note = el("textarea", { id: "note", rows: 1, maxlength: 5000, placeholder: "anything else" }, entry?.note ?? "");
    for (const field of [name, note]) {
      field.addEventListener("input", () => atlas.naming.type(latent, { name: name.value.trim(), note: note.value.trim() }));
    }
    const origin = [entry?.source, entry?.editor, Number.isFinite(entry?.score) ? `score ${format.number(entry.score)}` : null].filter(Boolean);
    return el("form", { class: "naming", onsubmit: (event) => event.preventDefault() },
      el("label", { for: "name" }, "Name"), name, el("label", { for: "note" }, "Note"), note,
      origin.length ? el("span", { class: "minor origin" }, origin.join(", ")) : null);
  }

  function references(latent, data, images) {
    const { state } = report.address();
    const asked = state.get("by");
    const holder = el("div");
    const tools = el("span");
    let figures = null;
    function choose(rule) {
      figures = parts.figures(latent, data, images, rule);
      tools.replaceChildren(parts.rules(rule, (name) => { report.remember({ by: name }); choose(name); }));
      holder.replaceChildren(figures.grid);
    }
    choose(atlas.aggregations.includes(asked) ? asked : parts.firstRule(data));
    if (state.get("image")) requestAnimationFrame(() => figures.enlarge(Number(state.get("image"))));
    return el("section", {},
      el("h2", {}, "Reference images"),
      el("div", { class: "tools" },
        el("span", { class: "note", style: "margin:0" },
          `The images that activate it most${atlas.has_patches ? ", bright in the patches where it is active" : ""}. Click one to enlarge it. Ranked by`),
        tools),
      holder);
  }

  function explainedHere(latent) {
    const found = atlas.explained.map((entry, i) => [entry, i]).filter(([entry]) => entry.latents.includes(latent)).slice(0, 12);
    if (!found.length) return [];
    return [section("explained", "Explained images", "Where it is among the strongest latents.",
      report.arrows(el("div", { class: "gallery" }, found.map(([, i]) => report.explainedCard(atlas, i))), "a.figure"))];
  }

  document.addEventListener("namechange", () => renamed());
  window.addEventListener("hashchange", show);
  show();
}).catch(report.fail);
