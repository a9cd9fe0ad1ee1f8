"use strict";
report.open().then((atlas) => {
  const { el, format } = report;
  const { latents } = atlas;
  const main = document.querySelector("main");
  const [nRows, nColumns] = atlas.grid;
  const { colours } = atlas;
  const answers = openAnswers(atlas);
  let maskChanged = () => {};
  report.navigation(atlas, "explain.html");

  function show() {
    window.scrollTo(0, 0);
    const { id } = report.address();
    if (id === "") { gallery(); return; }
    const i = Number(id);
    const entry = atlas.explained[i];
    if (!entry) {
      main.replaceChildren(el("p", { class: "empty" }, "There is no such image. ", el("a", { href: "explain.html" }, "All images")));
      return;
    }
    report.load(`explain/${entry.file}`).then((data) => draw(i, entry, data)).catch(report.fail);
  }

  function gallery() {
    document.title = "Images";
    if (!atlas.explained.length) {
      main.replaceChildren(el("p", { class: "empty" }, atlas.has_patches ? "This report explains no images. "
        : "This SAE reads no patches, so there is nothing to point at in an image. ", el("a", { href: "index.html" }, "All latents")));
      return;
    }
    const cards = atlas.explained.map((_, i) => report.explainedCard(atlas, i));
    const [chosen, others] = [cards.slice(0, atlas.n_chosen), cards.slice(atlas.n_chosen)];
    const grid = (some) => report.arrows(el("div", { class: "gallery" }, some), "a.figure");
    main.replaceChildren(el("h1", {}, "Images, explained"),
      el("p", { class: "lead" }, "Open an image to see which latents it activates; click a patch to see which are active there."),
      grid(chosen),
      ...(others.length ? [el("h2", {}, "Reference images"), el("p", { class: "note" }, "Those that most latents share."), grid(others)] : []));
  }

  function draw(i, entry, data) {
    const title = report.explainedTitle(entry, i);
    document.title = title;
    const { state } = report.address();
    const pinned = new Map();
    for (const text of (state.get("pins") || "").split(",").slice(0, colours.length)) {
      if (/^\d+$/.test(text) && data.masks[text]) pinned.set(Number(text), pinned.size);
    }
    let hovered = null;
    let patch = patchAt(state.get("patch"), atlas.grid);

    const picture = report.picture(report.explainedFile(entry));
    const layer = el("canvas", { class: "mask" });
    picture.append(layer);
    const patches = openPatches(picture, atlas.grid, "how", (next) => choose(next));
    const here = el("div", { class: "minis" });
    const legend = el("div", { class: "legend" });
    const list = el("div", { class: "relatives" });
    const heading = el("h2", { style: "margin-top:0", "aria-live": "polite" });
    const note = el("p", { class: "note" });

    function values(latent) {
      const [mask] = data.masks[latent] || [""];
      return mask ? report.shares(mask) : new Float32Array(nRows * nColumns);
    }

    function paintMask() {
      if (hovered !== null) report.shade(layer, atlas.grid, values(hovered));
      else if (pinned.size) report.tint(layer, atlas.grid, [...pinned].map(([latent, k]) => ({ values: values(latent), colour: colours[k] })));
      else { layer.width = layer.height = 1; }
      if (document.body.dataset.mask === "off") { legend.replaceChildren("Masks are off."); return; }
      legend.replaceChildren(...(pinned.size ? [...pinned].map(([latent, k]) => el("span", {},
        el("span", { class: "swatch", style: `background:rgb(${colours[k]})` }), `latent ${latent}`))
        : ["Point at a latent to see where it is active; tick several to compare them in colours."]));
    }

    function togglePin(latent) {
      if (pinned.has(latent)) pinned.delete(latent);
      else {
        const used = new Set(pinned.values());
        pinned.set(latent, colours.findIndex((_, k) => !used.has(k)));
      }
      hovered = null;
      report.remember({ pins: [...pinned.keys()].join(",") });
      markPins();
      paintMask();
    }

    const point = (latent) => () => { hovered = latent; paintMask(); };

    function line([latent, value]) {
      const position = atlas.position.get(latent);
      const known = position !== undefined;
      const pin = el("button", { class: "pin", type: "button", "aria-pressed": "false", "aria-label": `latent ${latent} in colour`, "data-pin": latent,
        onclick: () => togglePin(latent), onfocus: point(latent), onblur: point(null) });
      return el("div", { class: "relative listed", "data-latent": latent, onpointerenter: point(latent), onpointerleave: point(null) },
        pin,
        known ? el("a", { class: "id", href: report.latentLink(latent) }, String(latent)) : el("span", { class: "id" }, String(latent)),
        known ? el("a", { href: report.latentLink(latent), tabindex: -1, "aria-hidden": "true" }, report.strip(atlas, position)) : el("span"),
        el("span", { class: "what" }, el("div", {}, known ? report.describe(atlas, position).title : "not shown"),
          el("div", { class: "minor" }, known ? `${format.share(latents.frequency[position])}${latents.entropy[position] === null ? "" : `, entropy ${format.entropy(latents.entropy[position])}`}` : "")),
        el("span", { class: "num" }, format.number(value)));
    }

    // On a narrow screen the list lies below the picture: here are its masks, beside the patch touched.
    function small([latent]) {
      const one = report.picture(report.explainedFile(entry), atlas.grid, values(latent));
      return el("button", { type: "button", class: "mini", "data-mini": latent, "aria-label": `latent ${latent} in colour`, onclick: () => togglePin(latent) },
        one, el("span", {}, String(latent)));
    }

    function markPins() {
      for (const pin of list.querySelectorAll(".pin")) {
        const k = pinned.get(Number(pin.dataset.pin));
        pin.setAttribute("aria-pressed", k !== undefined);
        pin.disabled = k === undefined && pinned.size === colours.length;
        pin.title = pin.disabled ? `all ${colours.length} colours are in use` : "show in colour";
        pin.style.background = k === undefined ? "" : `rgb(${colours[k]})`;
        pin.style.borderColor = k === undefined ? "" : `rgb(${colours[k]})`;
      }
      for (const mini of here.querySelectorAll(".mini")) {
        const k = pinned.get(Number(mini.dataset.mini));
        mini.style.borderColor = k === undefined ? "" : `rgb(${colours[k]})`;
        mini.disabled = k === undefined && pinned.size === colours.length;
      }
    }

    function choose(next) {
      patch = next;
      const some = patch === null ? data.image : data.patches[patch];
      if (patch === null) {
        heading.textContent = "In the whole image";
        note.replaceChildren(`Its strongest latents by ${atlas.aggregations[0]} over tokens, each with its reference images and the class that leads among them. Click a patch for the latents there.`);
      } else {
        heading.textContent = `In the patch of row ${Math.floor(patch / nColumns) + 1}, column ${patch % nColumns + 1}`;
        note.replaceChildren("The latents most active there, each with its reference images, the class that leads among them, and its activation here. ",
          el("button", { type: "button", id: "whole", onclick: () => choose(null) }, "Whole image"));
      }
      list.replaceChildren(...some.map(line));
      if (!some.length) list.append(el("p", { class: "note" }, "No latent is active there."));
      here.replaceChildren(...some.slice(0, 12).map(small));
      hovered = null;
      report.remember({ patch: placeOf(patch, atlas.grid) });
      markPins();
      paintMask();
      patches.mark(patch);
    }

    maskChanged = () => { paintMask(); made?.paint(); };

    const made = data.answer ? answers.section(entry, data.answer) : null;
    const step = (to, text) => (atlas.explained[to] ? el("a", { href: `#${to}`, rel: to < i ? "prev" : "next" }, text) : null);
    main.replaceChildren(
      el("div", { class: "tools path" },
        el("a", { href: "explain.html" }, "← all images"), el("span", { class: "gap" }), step(i - 1, "← previous"), step(i + 1, "next →")),
      el("h1", { style: "margin-top:6px" }, title),
      el("p", { class: "lead" }, about(entry)),
      el("div", { class: "explain" },
        el("div", { class: "stage" }, picture, here, legend,
          el("p", { class: "minor", id: "how" }, "With the picture in focus, arrow keys choose a patch and Escape the whole image.")),
        el("div", {}, heading, note, list)),
      ...(made === null ? [] : [made.section]));
    choose(patch);
  }

  function about(entry) {
    return [entry.index === null || entry.id === null ? "" : `image ${format.count(entry.index)}`,
      entry.class === null ? "" : `labelled ${report.className(atlas, entry.class)}`].filter(Boolean).join(", ");
  }

  document.addEventListener("maskchange", () => maskChanged());
  window.addEventListener("hashchange", show);
  show();
}).catch(report.fail);
