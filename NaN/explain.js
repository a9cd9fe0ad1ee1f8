"use strict";
report.load("atlas").then((atlas) => {
  const { el, format } = report;
  const { latents } = atlas;
  const main = document.querySelector("main");
  const [nRows, nColumns] = atlas.grid;
  const { colours } = atlas;
  let maskChanged = () => {};
  report.navigation(atlas, "explain.html");

  function show() {
    window.scrollTo(0, 0);
    if (location.hash.length < 2) { gallery(); return; }
    const i = Number(location.hash.slice(1));
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
    main.replaceChildren(el("h1", {}, "Images, explained"),
      el("p", { class: "lead" }, "Open an image to see which latents it activates; click a patch to see which are active there."),
      el("div", { class: "gallery" }, atlas.explained.map((_, i) => report.explainedCard(atlas, i))));
  }

  function draw(i, entry, data) {
    const title = report.explainedTitle(entry, i);
    document.title = title;
    const pinned = new Map();
    let hovered = null;
    let patch = null;

    const picture = report.picture(report.explainedFile(atlas, entry));
    const layer = el("canvas", { class: "mask" });
    const cells = el("canvas", { class: "cells" });
    picture.append(layer, cells);
    const legend = el("div", { class: "legend" });
    const list = el("div", { class: "relatives" });
    const heading = el("h2", { style: "margin-top:0" });
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

    function line([latent, value]) {
      const position = latents.id.indexOf(latent);
      const known = position >= 0;
      const pin = el("button", { class: "pin", type: "button", "aria-pressed": "false", "data-pin": latent,
        onclick: () => {
          if (pinned.has(latent)) pinned.delete(latent);
          else {
            const used = new Set(pinned.values());
            pinned.set(latent, colours.findIndex((_, k) => !used.has(k)));
          }
          hovered = null;
          markPins();
          paintMask();
        } });
      const point = (on) => () => { hovered = on ? latent : null; paintMask(); };
      return el("div", { class: "relative listed", "data-latent": latent, onpointerenter: point(true), onpointerleave: point(false) },
        pin,
        known ? el("a", { class: "id", href: report.latentLink(latent) }, String(latent)) : el("span", { class: "id" }, String(latent)),
        known ? el("a", { href: report.latentLink(latent) }, report.strip(atlas, position)) : el("span"),
        el("span", { class: "what" }, el("div", {}, known ? report.describe(atlas, position).title : "not shown"),
          el("div", { class: "minor" }, known ? `${format.share(latents.frequency[position])}${latents.entropy[position] === null ? "" : `, entropy ${format.entropy(latents.entropy[position])}`}` : "")),
        el("span", { class: "num" }, format.number(value)));
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
    }

    function choose(next) {
      patch = next;
      if (patch === null) {
        heading.textContent = "In the whole image";
        note.replaceChildren(`Its strongest latents by ${atlas.aggregations[0]} over tokens, each with its reference images and the class that leads among them. Click a patch for the latents there.`);
        list.replaceChildren(...data.image.map(line));
      } else {
        heading.textContent = `In the patch of row ${Math.floor(patch / nColumns) + 1}, column ${patch % nColumns + 1}`;
        note.replaceChildren("The latents most active there, each with its reference images, the class that leads among them, and its activation here. ",
          el("button", { type: "button", id: "whole", onclick: () => choose(null) }, "Whole image"));
        list.replaceChildren(...data.patches[patch].map(line));
        if (!data.patches[patch].length) list.append(el("p", { class: "note" }, "No latent is active there."));
      }
      hovered = null;
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
    window.onresize = paintCells;
    maskChanged = paintMask;
    picture.querySelector("img").addEventListener("load", paintCells);

    const step = (to, text) => (atlas.explained[to] ? el("a", { href: `#${to}`, rel: to < i ? "prev" : "next" }, text) : null);
    main.replaceChildren(
      el("div", { class: "tools", style: "margin:30px 0 0;color:var(--soft);font-size:13.5px" },
        el("a", { href: "explain.html" }, "All images"), el("span", { class: "gap" }), step(i - 1, "← previous"), step(i + 1, "next →")),
      el("h1", { style: "margin-top:6px" }, title),
      el("p", { class: "lead" }, about(entry)),
      el("div", { class: "explain" },
        el("div", { class: "stage" }, picture, legend),
        el("div", {}, heading, note, list)));
    choose(null);
  }

  function about(entry) {
    return [entry.index === null || entry.id === null ? "" : `image ${format.count(entry.index)}`,
      entry.class === null ? "" : `labelled ${report.className(atlas, entry.class)}`].filter(Boolean).join(", ");
  }

  document.addEventListener("maskchange", () => maskChanged());
  window.addEventListener("hashchange", show);
  show();
}).catch(report.fail);
