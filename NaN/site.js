// Made by vit-sae: a report of latents.
"use strict";
// Shared by all pages: loading data from disk, building elements, drawing masks.
const report = (() => {
  const received = new Map();
  const waiting = new Map();

  // Data files call this. Browsers run scripts from disk, but refuse to fetch files.
  function receive(key, data) {
    received.set(key, data);
    for (const resolve of waiting.get(key) || []) resolve(data);
    waiting.delete(key);
  }

  function load(key) {
    if (received.has(key)) return Promise.resolve(received.get(key));
    return new Promise((resolve, reject) => {
      if (waiting.has(key)) { waiting.get(key).push(resolve); return; }
      waiting.set(key, [resolve]);
      const script = document.createElement("script");
      script.src = `data/${key}.js`;
      script.onerror = () => reject(new Error(`data/${key}.js is missing`));
      document.head.append(script);
    });
  }

  // Children are elements or text; text is never read as HTML.
  function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  }

  function svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const missing = "–";
  const format = {
    number(value) {
      if (value === null || value === undefined) return missing;
      if (value === 0) return "0";
      const size = Math.abs(value);
      if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace(".0e", "e").replace("e-", "e−").replace("e+", "e");
      return Number(value.toPrecision(3)).toString();
    },
    count(value) { return value === null ? missing : value.toLocaleString("en"); },
    share(value) {
      if (value === null) return missing;
      const percent = value * 100;
      return (percent >= 10 ? percent.toFixed(1) : percent >= 0.1 || percent === 0 ? percent.toFixed(2)
        : percent.toPrecision(2)) + " %";
    },
    entropy(value) { return value === null ? missing : Math.abs(value).toFixed(2); },
    power(exponent) { return `10${[...String(exponent)].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign] ?? "⁻").join("")}`; },
  };

  function shares(mask) {
    const bytes = atob(mask);
    return Float32Array.from(bytes, (byte) => byte.charCodeAt(0) / 255);
  }

  function previewShares(preview) {
    return Float32Array.from(preview, (digit) => parseInt(digit, 16) / 15);
  }

  // One pixel for each patch: black, the less opaque the more active the patch is. The browser
  // scales it, in blocks or smoothly.
  function shade(canvas, [rows, columns], values) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      pixels.data[4 * i + 3] = 255 * 0.7 * (1 - Math.sqrt(values ? values[i] : 0));
    }
    context.putImageData(pixels, 0, 0);
  }

  // Several latents in colours, over the dimmed picture. Where they overlap, colours mix by how
  // active each latent is, so that none hides another.
  function tint(canvas, [rows, columns], layers) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    const dimmed = 0.5;
    for (let i = 0; i < rows * columns; i++) {
      const sum = layers.reduce((total, { values }) => total + values[i], 0);
      const share = 0.75 * Math.max(...layers.map(({ values }) => values[i]));
      const alpha = share + dimmed * (1 - share);
      const mixed = [0, 1, 2].map((channel) => (sum === 0 ? 0
        : layers.reduce((total, { values, colour }) => total + values[i] * colour[channel], 0) / sum));
      pixels.data.set([...mixed.map((value) => Math.round(value * share / alpha)), 255 * alpha], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
  }

  function pictureFile(atlas, index) { return `images/${String(index).padStart(7, "0")}.${atlas.extension}`; }
  function explainedFile(atlas, entry) { return `images/explained-${entry.file}.${atlas.extension}`; }
  function explainedTitle(entry, position) {
    return entry.id ?? (entry.index === null ? `Picture ${position + 1}` : `Image ${format.count(entry.index)}`);
  }
  function explainedCard(atlas, position) {
    const entry = atlas.explained[position];
    const title = explainedTitle(entry, position);
    return el("a", { class: "figure", href: `explain.html#${position}`, "data-image": position },
      picture(explainedFile(atlas, entry)), el("div", { title }, el("b", {}, title)),
      el("div", {}, entry.class === null ? "" : className(atlas, entry.class)));
  }

  function picture(file, grid, values, attributes = {}) {
    const image = el("img", { src: file, loading: "lazy", decoding: "async", alt: "" });
    const frame = el("span", { class: "picture", ...attributes }, image);
    const measure = () => {
      if (!image.naturalWidth) return;
      frame.style.setProperty("--aspect", image.naturalWidth / image.naturalHeight);
      if (image.naturalWidth <= 96) frame.classList.add("small");
    };
    if (image.complete) measure(); else image.addEventListener("load", measure);
    if (values) {
      const canvas = el("canvas", { class: "mask" });
      shade(canvas, grid, values);
      frame.append(canvas);
    }
    return frame;
  }

  function strip(atlas, position, n = 5) {
    const previews = atlas.latents.previews[position] || [];
    return el("span", { class: "strip" }, previews.slice(0, n).map(([index, preview]) =>
      picture(pictureFile(atlas, index), atlas.preview_grid, preview ? previewShares(preview) : null)));
  }

  const viridis = [[70, 50, 126], [54, 92, 141], [39, 127, 142], [31, 161, 135], [74, 193, 109], [160, 218, 57]];
  function entropyColour(entropy, highest) {
    if (entropy === null) return null;
    const place = Math.min(1, Math.max(0, entropy / (highest || 1))) * (viridis.length - 1);
    const low = Math.min(Math.floor(place), viridis.length - 2);
    return viridis[low].map((value, i) => Math.round(value + (viridis[low + 1][i] - value) * (place - low)));
  }

  function className(atlas, index) { return index === null || index === undefined ? missing : atlas.classes[index] ?? String(index); }

  function describe(atlas, position) {
    const { name, classes } = atlas.latents;
    const first = classes[position].map((c) => className(atlas, c));
    return { title: name[position] || first[0] || "", minor: (name[position] ? first : first.slice(1)).join(", ") };
  }

  function latentLink(latent) { return `latent.html#${latent}`; }

  // The classes one can filter by: those that lead among some latent's reference images.
  function leadingClasses(atlas) { return new Set(atlas.latents.classes.flat()); }

  // The filter last used in this report, so that one finds back to it.
  const viewKey = `vit-sae-view ${location.pathname.replace(/[^/]*$/, "")}`;
  function keepView(hash) {
    try { sessionStorage.setItem(viewKey, hash); } catch { /* not kept */ }
  }
  function backToLatents() {
    let view = "";
    try { view = sessionStorage.getItem(viewKey) || ""; } catch { /* not kept */ }
    return el("a", { href: `index.html${view}`, id: "back" }, "← all latents");
  }

  // How masks are drawn is one setting for all pages.
  function maskChoice() {
    let chosen = "blocks";
    try { chosen = localStorage.getItem("vit-sae-mask") || chosen; } catch { /* not kept */ }
    const buttons = ["off", "blocks", "smooth"].map((kind) => el("button", {
      type: "button", "data-kind": kind,
      onclick: () => choose(kind),
    }, kind));
    function choose(kind) {
      document.body.dataset.mask = kind;
      for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.kind === kind);
      try { localStorage.setItem("vit-sae-mask", kind); } catch { /* not kept */ }
      document.dispatchEvent(new Event("maskchange"));
    }
    choose(chosen);
    return el("span", { class: "masks" }, el("span", { class: "name" }, "Masks"),
      el("span", { class: "choice" }, buttons));
  }

  function navigation(atlas, here) {
    const pages = [["index.html", "Latents"], ["explain.html", "Images"]];
    document.querySelector(".bar").append(
      here === "index.html" ? "" : el("a", { class: "home", href: "index.html" }, atlas.title),
      ...pages.filter(([file]) => file !== "explain.html" || atlas.explained.length).map(([file, name]) =>
        el("a", { href: file, class: file === here ? "here" : null }, name)),
      el("span", { class: "gap" }), atlas.has_patches ? maskChoice() : "");
  }

  function fail(error) {
    document.querySelector("main").append(el("p", { class: "empty" }, String(error.message || error)));
  }

  return { receive, load, el, svg, format, shares, previewShares, shade, tint, picture, pictureFile, explainedFile,
    explainedTitle, explainedCard, strip, entropyColour, className, describe, latentLink, leadingClasses, keepView,
    backToLatents, navigation, fail };
})();
