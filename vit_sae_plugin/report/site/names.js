"use strict";
// Names and notes of latents: those the report was written with, and over them those typed here,
// which the browser keeps and the reader saves as a file that LatentAtlas.read_names takes.
function openNames(atlas) {
  const { el, keep, kept, save } = report;
  const sae = atlas.facts.hashes.SAE;
  const key = `vit-sae-names ${sae}`;
  const kind = "vit-sae latent names";
  const texts = ["source", "editor", "edited"];
  let typed = recall();
  let shown = null;

  function recall() {
    try { return JSON.parse(kept(key)) || {}; } catch { return {}; }
  }
  function store() {
    const works = keep(key, JSON.stringify(typed));
    if (!works) window.alert("This browser keeps nothing for pages like this one. Save the names as a file before leaving.");
    label();
    document.dispatchEvent(new Event("namechange"));
  }
  const says = (entry) => Boolean(entry && (entry.name || entry.note));

  function of(latent) {
    const entry = typed[latent] ?? atlas.names[latent];
    return says(entry) ? entry : null;
  }

  // The latents that have a name or a note.
  function all() {
    return Object.keys({ ...atlas.names, ...typed }).map(Number).filter((latent) => of(latent) !== null).sort((a, b) => a - b);
  }

  function type(latent, { name, note }) {
    typed = recall(); // another window may have typed as well
    const before = typed[latent] ?? atlas.names[latent];
    if ((before?.name || "") === name && (before?.note || "") === note) return;
    typed[latent] = { name, note, score: null, source: "typed", editor: kept("vit-sae-editor") || null,
      edited: new Date().toISOString().replace(/\.\d+Z$/, "Z") };
    store();
  }

  // All names, not only those typed here; an entry without name and note takes an earlier one away.
  function file() {
    const names = Object.fromEntries(Object.entries({ ...atlas.names, ...typed })
      .filter(([latent, entry]) => says(entry) || says(atlas.names[latent])));
    return JSON.stringify({ format: kind, version: 1, sae_sha256: sae, names }, null, 1) + "\n";
  }

  // Take over what a file says, checked as LatentAtlas.read_names does.
  function read(text) {
    let data = null;
    try { data = JSON.parse(text); } catch { /* said below */ }
    if (data?.format !== kind || data.version !== 1 || typeof data.names !== "object" || !data.names) {
      throw new Error("This file holds no names of latents.");
    }
    if (data.sae_sha256 !== sae) throw new Error("This file names the latents of another SAE.");
    for (const [latent, entry] of Object.entries(data.names)) {
      const good = /^\d+$/.test(latent) && Number(latent) < atlas.facts.d_sae && typeof entry?.name === "string"
        && typeof (entry.note ?? "") === "string" && texts.every((field) => ["string", "undefined"].includes(typeof (entry[field] ?? undefined)))
        && (entry.score === null || entry.score === undefined || Number.isFinite(entry.score));
      if (!good) throw new Error(`This file is damaged at latent ${latent}.`);
    }
    typed = { ...recall(), ...data.names };
    store();
  }

  function label() {
    const n = Object.keys(typed).length;
    if (shown) shown.textContent = n ? `Names (${n})` : "Names";
  }

  function button() {
    shown = el("button", { type: "button", id: "names", class: "quiet", onclick: show });
    label();
    return shown;
  }

  function show() {
    const message = el("p", { class: "note", role: "status" });
    const editor = el("input", { type: "text", id: "editor", value: kept("vit-sae-editor") || "", autocomplete: "name", maxlength: 200 });
    editor.addEventListener("input", () => keep("vit-sae-editor", editor.value.trim()));
    const opened = el("input", { type: "file", accept: ".json,application/json", hidden: true });
    opened.addEventListener("change", () => opened.files[0]?.text().then(read).then(() => list(), (error) => { message.textContent = error.message; }));
    const table = el("div", { class: "named" });
    const dialog = el("dialog", { class: "sheet", "aria-label": "Names of latents" },
      el("h2", {}, "Names and notes"),
      el("p", { class: "note" }, "What is typed on the latents' pages stays in this browser. Save it as a file and read it into the atlas with ",
        el("code", {}, "atlas.read_names(file)"), " or ", el("code", {}, "vit-sae analyze … --names file"), ", and it is part of the next report."),
      el("div", { class: "tools" },
        el("label", {}, "Signed as ", editor), el("span", { class: "gap" }),
        el("button", { type: "button", id: "save-names", onclick: () => save("names.json", file(), "application/json") }, "Save as a file"),
        el("button", { type: "button", onclick: () => opened.click() }, "Open a file…"), opened,
        el("button", { type: "button", onclick: () => {
          if (!Object.keys(typed).length || !window.confirm("Forget all names and notes typed in this browser?")) return;
          typed = {};
          store();
          list();
        } }, "Forget what was typed")),
      message, table,
      el("form", { method: "dialog" }, el("button", {}, "Close")));
    function list() {
      const some = all();
      table.replaceChildren(...(some.length ? some : [null]).map((latent) => latent === null
        ? el("p", { class: "note" }, "No latent has a name yet. Type one on its page.")
        : el("div", { class: "entry" }, el("a", { href: report.latentLink(latent), onclick: () => dialog.close() }, String(latent)),
          el("b", {}, of(latent).name), el("span", { class: "minor" }, of(latent).note || ""),
          el("span", { class: "minor" }, [typed[latent] ? "typed here" : of(latent).source, of(latent).editor].filter(Boolean).join(", ")))));
    }
    list();
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }

  return { of, all, type, file, read, button };
}
