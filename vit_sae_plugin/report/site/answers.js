"use strict";
// What made the model's answer to an image: the part of each latent, in each patch.
function openAnswers(atlas) {
  const { el, format } = report;
  const { latents } = atlas;
  const nPatches = atlas.grid[0] * atlas.grid[1];
  const signed = (value) => (value > 0 ? `+${format.number(value)}` : format.number(value).replace("-", "−"));

  function section(entry, answer) {
    const parts = new Map(answer.latents.map(([latent, , , patches, values]) => [latent, spread(patches, values)]));
    const largestSum = Math.max(...answer.patches.map(Math.abs));
    const largestAlone = Math.max(...answer.latents.slice(0, answer.n_listed).flatMap(([, , , , values]) => values.map(Math.abs)), 0);
    let patch = patchAt(report.address().state.get("made"), atlas.grid);
    let pointed = null;
    let pinned = null;

    const picture = report.picture(report.explainedFile(entry));
    picture.classList.add("grey");
    const layer = el("canvas", { class: "mask" });
    picture.append(layer);
    const patches = openPatches(picture, atlas.grid, "how-made", (next) => choose(next));
    const legend = el("div", { class: "legend", "aria-live": "polite" });
    const heading = el("h3");
    const note = el("p", { class: "note" });
    const list = el("div", { class: "relatives" });

    function paint() {
      const latent = pointed ?? pinned;
      const values = latent === null ? answer.patches : parts.get(latent);
      report.diverge(layer, atlas.grid, values, latent === null ? largestSum : largestAlone);
      const bound = format.number(latent === null ? largestSum : largestAlone);
      legend.replaceChildren(...(document.body.dataset.mask === "off" ? ["Masks are off."] : [
        el("span", { class: "scale" }, `−${bound}`, el("span", { class: "ramp" }), `+${bound}`),
        latent === null ? "all latents together" : `latent ${latent}`]));
      for (const row of list.querySelectorAll(".parted")) row.classList.toggle("active", Number(row.dataset.latent) === pinned);
    }

    function line([latent, value, largest]) {
      const position = atlas.position.get(latent);
      const known = position !== undefined;
      const width = `width:${Math.min(50, 50 * Math.abs(value) / largest)}%`;
      const point = (there) => () => { pointed = there; paint(); };
      return el("div", { class: "relative parted", "data-latent": latent, onpointerenter: point(latent), onpointerleave: point(null) },
        el("button", { type: "button", class: "pin", "aria-pressed": String(pinned === latent), "aria-label": `where latent ${latent} acts`, title: "keep in view",
          onclick: (event) => { pinned = pinned === latent ? null : latent; event.target.setAttribute("aria-pressed", pinned === latent); mark(); paint(); },
          onfocus: point(latent), onblur: point(null) }),
        known ? el("a", { class: "id", href: report.latentLink(latent) }, String(latent)) : el("span", { class: "id" }, String(latent)),
        known ? el("a", { href: report.latentLink(latent), tabindex: -1, "aria-hidden": "true" }, report.strip(atlas, position, 3)) : el("span"),
        el("span", { class: "what" }, el("div", {}, known ? report.describe(atlas, position).title : "not shown"),
          el("div", { class: "minor" }, known ? `${format.share(latents.frequency[position])} of images` : "")),
        el("span", { class: "either" }, el("span", { class: value > 0 ? "raises" : "lowers", style: width })),
        el("span", { class: "num" }, signed(value)));
    }

    function mark() {
      for (const pin of list.querySelectorAll(".pin")) {
        pin.setAttribute("aria-pressed", Number(pin.closest(".parted").dataset.latent) === pinned);
      }
    }

    function choose(next) {
      patch = next;
      let some = answer.latents.slice(0, answer.n_listed).map(([latent, part]) => [latent, part]);
      if (patch === null) {
        heading.textContent = "In the whole image";
        note.replaceChildren("The latents with the largest parts, summed over tokens. Click a patch for those that act there.");
      } else {
        some = answer.latents.map(([latent]) => [latent, parts.get(latent)[patch]]).filter(([, part]) => part)
          .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 6);
        heading.textContent = `In the patch of ${place(patch)}: ${signed(answer.patches[patch])}`;
        note.replaceChildren("The latents with the largest parts there. ", el("button", { type: "button", id: "made-whole", onclick: () => choose(null) }, "Whole image"));
      }
      const largest = Math.max(...some.map(([, part]) => Math.abs(part)), 1e-30);
      list.replaceChildren(...some.map(([latent, part]) => line([latent, part, largest])));
      if (!some.length) list.append(el("p", { class: "note" }, "No latent is active there."));
      pointed = null;
      report.remember({ made: placeOf(patch, atlas.grid) });
      paint();
      patches.mark(patch);
    }

    const whole = el("section", { id: "made" },
      el("h2", {}, "What made this answer"),
      el("p", { class: "lead made" }, ...sentence(entry, answer)),
      el("div", { class: "explain" },
        el("div", { class: "stage" }, picture, candidates(answer), legend,
          el("p", { class: "minor", id: "how-made" }, "Red patches raise the answer, blue ones lower it. With the picture in focus, arrow keys choose a patch and Escape the whole image.")),
        el("div", {}, heading, note, list)));
    choose(patch);
    return { section: whole, paint };
  }

  function spread(patches, values) {
    const all = new Float32Array(nPatches);
    patches.forEach((patch, k) => { all[patch] += values[k]; });
    return all;
  }

  function place(patch) { return `row ${Math.floor(patch / atlas.grid[1]) + 1}, column ${patch % atlas.grid[1] + 1}`; }

  function nameOf(answer) { return answer.what ?? (answer.class === null ? "the number asked for" : report.className(atlas, answer.class)); }

  function sentence(entry, answer) {
    const first = answer.candidates ? ["The model answers ", el("b", {}, nameOf(answer))] : [el("b", {}, nameOf(answer))];
    const right = !answer.candidates || entry.class === null ? "" : entry.class === answer.class ? ", rightly" : `, but it is labelled ${report.className(atlas, entry.class)}`;
    return [...first, right, `: a logit of ${format.number(answer.score)}. A latent's part in it is its activation × the logit's gradient, close to what is lost when the latent is silenced there. `,
      `All parts together make ${signed(answer.total)}, of which ${signed(answer.elsewhere)} in tokens that are no patches.`];
  }

  function candidates(answer) {
    return el("div", { class: "candidates" }, (answer.candidates ?? []).map(([label, logit, share], k) =>
      el("div", { class: k ? "" : "chosen" }, el("span", {}, report.className(atlas, label)),
        el("span", { class: "num" }, format.number(logit)), el("span", { class: "num" }, `${(100 * share).toFixed(share >= 0.0995 ? 0 : 1)} %`))));
  }

  return { section };
}
