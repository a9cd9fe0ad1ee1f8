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
  function explainedFile(entry) { return `images/${entry.picture}`; }
  function explainedTitle(entry, position) {
    return entry.id ?? (entry.index === null ? `Picture ${position + 1}` : `Image ${format.count(entry.index)}`);
  }
  function explainedCard(atlas, position) {
    const entry = atlas.explained[position];
    const title = explainedTitle(entry, position);
    return el("a", { class: "figure", href: `explain.html#${position}`, "data-image": position },
      picture(explainedFile(entry)), el("div", { title }, el("b", {}, title)),
      el("div", {}, entry.class === null ? "" : className(atlas, entry.class)));
  }

  // As `shade`, of signed values: red raises, blue lowers, the more opaque the larger.
  function diverge(canvas, [rows, columns], values, largest) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      const share = largest > 0 ? Math.min(1, Math.abs(values[i]) / largest) : 0;
      pixels.data.set([...(values[i] > 0 ? [226, 48, 40] : [38, 110, 232]), 180 * share ** 0.6], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
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

  // The first reference images of a latent, filled in when their file has come.
  function strip(atlas, position, n = 5) {
    const frame = el("span", { class: "strip" });
    firstImages(atlas, position).then((previews) => frame.replaceChildren(...previews.slice(0, n).map(([index, preview]) =>
      picture(pictureFile(atlas, index), atlas.preview_grid, preview ? previewShares(preview) : null)))).catch(fail);
    return frame;
  }

  function firstImages(atlas, position) {
    const file = String(Math.floor(position / atlas.previews_in_a_file)).padStart(5, "0");
    return load(`previews/${file}`).then((previews) => previews[position % atlas.previews_in_a_file]);
  }

  const viridis = [[70, 50, 126], [54, 92, 141], [39, 127, 142], [31, 161, 135], [74, 193, 109], [160, 218, 57]];
  function entropyColour(entropy, highest) {
    if (entropy === null) return null;
    const place = Math.min(1, Math.max(0, entropy / (highest || 1))) * (viridis.length - 1);
    const low = Math.min(Math.floor(place), viridis.length - 2);
    return viridis[low].map((value, i) => Math.round(value + (viridis[low + 1][i] - value) * (place - low)));
  }

  function className(atlas, index) { return index === null || index === undefined ? missing : atlas.classes[index] ?? String(index); }

  // What a further measure is called: its column's name in words.
  function measureName(name) { return name.replaceAll("_", " "); }

  function describe(atlas, position) {
    const { id, classes } = atlas.latents;
    const first = classes[position].map((c) => className(atlas, c));
    const name = atlas.naming.of(id[position])?.name || "";
    return { title: name || first[0] || "", minor: (name ? first : first.slice(1)).join(", ") };
  }

  // An address is "#17&class=2&mask=smooth": what the page is about, then how it is shown.
  function address() {
    const [first, ...rest] = location.hash.slice(1).split("&");
    const id = first.includes("=") ? "" : decodeURIComponent(first);
    return { id, state: new URLSearchParams(id === "" && first ? [first, ...rest].join("&") : rest.join("&")) };
  }

  // Change what the address says of how the page is shown; null takes a part away.
  function remember(changes) {
    const { id, state } = address();
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === "") state.delete(key); else state.set(key, value);
    }
    const text = String(state).replaceAll("%2C", ",");
    try { history.replaceState(null, "", `#${id}${id !== "" && text ? "&" : ""}${text}`); } catch { /* some browsers forbid it on disk */ }
  }

  const withView = (link, view) => `${link}${view ? `&${view}` : ""}`;
  function latentLink(latent, view = "") { return withView(`latent.html#${latent}`, view); }
  function compareLink(one, other, view = "") { return withView(`compare.html#${one},${other}`, view); }

  // The classes one can filter by: those that lead among some latent's reference images.
  function leadingClasses(atlas) { return new Set(atlas.latents.classes.flat()); }

  // How masks are drawn is one setting for all pages; an address may say otherwise.
  const maskKinds = ["off", "blocks", "smooth"];
  function maskChoice() {
    const buttons = maskKinds.map((kind) => el("button", {
      type: "button", "data-kind": kind,
      onclick: () => { keep("vit-sae-mask", kind); remember({ mask: kind }); draw(kind); },
    }, kind));
    function draw(kind) {
      document.body.dataset.mask = kind;
      for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.kind === kind);
      document.dispatchEvent(new Event("maskchange"));
    }
    function recall() {
      const wanted = [address().state.get("mask"), kept("vit-sae-mask"), "blocks"];
      draw(wanted.find((kind) => maskKinds.includes(kind)));
    }
    window.addEventListener("hashchange", recall);
    recall();
    return el("span", { class: "masks" }, el("span", { class: "name" }, "Masks"),
      el("span", { class: "choice", role: "group", "aria-label": "masks" }, buttons));
  }

  // What a browser keeps for the next visit, where it allows that.
  function keep(key, text) { try { localStorage.setItem(key, text); return true; } catch { return false; } }
  function kept(key) { try { return localStorage.getItem(key); } catch { return null; } }

  // Hand the reader a file.
  function save(name, text, type) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = el("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  }

  function navigation(atlas, here) {
    const pages = [["index.html", "Latents"], ["explain.html", "Images"], ["tree.html", "Tree"], ["masking.html", "Masking"]];
    const shown = { "explain.html": atlas.explained.length > 0, "tree.html": atlas.has_tree, "masking.html": atlas.has_masking };
    document.querySelector(".bar").append(
      here === "index.html" ? "" : el("a", { class: "home", href: "index.html" }, atlas.title),
      ...pages.filter(([file]) => shown[file] ?? true).map(([file, name]) =>
        el("a", { href: file, class: file === here ? "here" : null }, name)),
      el("span", { class: "gap" }), atlas.naming.button(), atlas.has_patches ? maskChoice() : "");
  }

  // Arrow keys follow the links to the previous and the next thing, where nothing else takes them.
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.metaKey || event.ctrlKey || event.altKey || document.querySelector("dialog[open]")
      || event.target.closest?.("input, select, textarea")) return;
    const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    if (rel) document.querySelector(`a[rel="${rel}"]`)?.click();
  });

  // Arrow keys move between the things in a row or a grid.
  function arrows(parent, selector) {
    parent.addEventListener("keydown", (event) => {
      const all = [...parent.querySelectorAll(selector)];
      const here = all.indexOf(event.target.closest(selector));
      if (here < 0) return;
      const tops = all.map((one) => Math.round(one.getBoundingClientRect().top));
      const columns = Math.max(1, tops.filter((top) => top === tops[0]).length);
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      if (step === undefined || event.metaKey || event.ctrlKey || event.altKey) return;
      event.preventDefault();
      all[here + step]?.focus();
    });
    return parent;
  }

  // What all pages load first.
  function open() {
    return load("atlas").then((atlas) => {
      atlas.position = new Map(atlas.latents.id.map((latent, position) => [latent, position]));
      atlas.explanation = new Map(atlas.explained.map((entry, i) => [entry.index, i]).reverse());
      atlas.naming = openNames(atlas);
      return atlas;
    });
  }

  function fail(error) {
    document.querySelector("main").append(el("p", { class: "empty" }, String(error.message || error)));
  }

  return { receive, load, open, el, svg, format, shares, previewShares, shade, tint, diverge, picture, pictureFile,
    explainedFile, explainedTitle, explainedCard, strip, firstImages, entropyColour, className, measureName, describe, address,
    remember, latentLink, compareLink, leadingClasses, keep, kept, save, navigation, arrows, fail };
})();
