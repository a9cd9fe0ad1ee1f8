"use strict";
report.open().then((atlas) => {
  const { el, format } = report;
  const { latents } = atlas;
  const main = document.querySelector("main");
  const [nRows, nColumns] = atlas.grid;
  const { colours } = atlas;
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
    let patch = patchAt(state.get("patch"));

    const picture = report.picture(report.explainedFile(entry));
    const layer = el("canvas", { class: "mask" });
    const cells = el("canvas", { class: "cells" });
    picture.append(layer, cells);
    for (const [name, value] of Object.entries({ tabindex: 0, role: "application", "aria-describedby": "how",
      "aria-label": `${nRows} rows and ${nColumns} columns of patches` })) picture.setAttribute(name, value);
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

    function paintCells() {
      const box = picture.getBoundingClientRect();
      const ratio = window.devicePixelRatio || 1;
      cells.width = Math.max(1, box.width * ratio);
      cells.height = Math.max(1, box.height * ratio);
      const context = cells.getContext("2d");
      const [w, h] = [cells.width / nColumns, cells.height / nRows];
      if (patch === null) return;
      const [row, column] = [Math.floor(patch / nColumns), patch % nColumns];
      context.lineWidth = 4 * ratio;
      context.strokeStyle = "rgb(0 0 0 / .65)";
      context.strokeRect(column * w, row * h, w, h);
      context.lineWidth = 2 * ratio;
      context.strokeStyle = "#fff";
      context.strokeRect(column * w, row * h, w, h);
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

    const placeOf = (next) => (next === null ? null : `${Math.floor(next / nColumns) + 1},${next % nColumns + 1}`);

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
      report.remember({ patch: placeOf(patch) });
      markPins();
      paintMask();
      paintCells();
    }

    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      const column = Math.min(nColumns - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * nColumns)));
      const row = Math.min(nRows - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * nRows)));
      choose(patch === row * nColumns + column ? null : row * nColumns + column);
    });
    picture.addEventListener("keydown", (event) => {
      if (event.metaKey || event.ctrlKey || event.altKey) return;
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [];
      if (event.key === "Escape") choose(null);
      else if (down === undefined) return;
      else if (patch === null) choose(Math.floor(nRows / 2) * nColumns + Math.floor(nColumns / 2));
      else {
        const row = Math.min(nRows - 1, Math.max(0, Math.floor(patch / nColumns) + down));
        const column = Math.min(nColumns - 1, Math.max(0, patch % nColumns + right));
        choose(row * nColumns + column);
      }
      event.preventDefault();
    });
    window.onresize = paintCells;
    maskChanged = paintMask;
    picture.querySelector("img").addEventListener("load", paintCells);

    const step = (to, text) => (atlas.explained[to] ? el("a", { href: `#${to}`, rel: to < i ? "prev" : "next" }, text) : null);
    main.replaceChildren(
      el("div", { class: "tools path" },
        el("a", { href: "explain.html" }, "← all images"), el("span", { class: "gap" }), step(i - 1, "← previous"), step(i + 1, "next →")),
      el("h1", { style: "margin-top:6px" }, title),
      el("p", { class: "lead" }, about(entry)),
      el("div", { class: "explain" },
        el("div", { class: "stage" }, picture, here, legend,
          el("p", { class: "minor", id: "how" }, "With the picture in focus, arrow keys choose a patch and Escape the whole image.")),
        el("div", {}, heading, note, list)));
    choose(patch);
  }

  // A patch as addresses and headings have it: row and column, counted from 1.
  function patchAt(text) {
    const [row, column] = (text || "").split(",").map(Number);
    return row >= 1 && row <= nRows && column >= 1 && column <= nColumns && Number.isInteger(row) && Number.isInteger(column)
      ? (row - 1) * nColumns + column - 1 : null;
  }

  function about(entry) {
    return [entry.index === null || entry.id === null ? "" : `image ${format.count(entry.index)}`,
      entry.class === null ? "" : `labelled ${report.className(atlas, entry.class)}`].filter(Boolean).join(", ");
  }

  document.addEventListener("maskchange", () => maskChanged());
  window.addEventListener("hashchange", show);
  show();
}).catch(report.fail);
