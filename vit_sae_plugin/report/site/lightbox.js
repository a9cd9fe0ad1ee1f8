"use strict";
// A reference image, enlarged, with where the latent is active in it.
function openLightbox(atlas, latent, rule, entries, start, onClose) {
  const { el, format } = report;
  const content = el("div");
  const dialog = el("dialog", { class: "lightbox", tabindex: -1, autofocus: true, "aria-label": "Reference image" }, content);
  let place = start;

  function draw() {
    const { index, value, mask, largest, id, label } = entries[place];
    const explained = atlas.explanation.get(index);
    const file = explained === undefined ? report.pictureFile(atlas, index) : report.explainedFile(atlas.explained[explained]);
    const step = (by, text, name) => el("button", { type: "button", "data-step": by, "aria-label": name, disabled: !entries[place + by],
      onclick: () => move(by) }, text);
    content.replaceChildren(
      report.picture(file, atlas.grid, mask ? report.shares(mask) : null),
      el("div", { class: "beside" },
        el("p", { class: "minor" }, `Reference image ${place + 1} of ${entries.length} of latent ${latent}`),
        el("h2", {}, id),
        el("dl", { class: "facts" },
          label === null ? null : el("div", {}, el("dt", {}, "class"), el("dd", {}, report.className(atlas, label))),
          el("div", {}, el("dt", {}, rule), el("dd", {}, format.number(value))),
          el("div", {}, el("dt", {}, "largest activation"), el("dd", {}, format.number(largest)))),
        explained === undefined
          ? el("p", { class: "note" }, atlas.has_patches ? "This report has no explanation of this image." : "")
          : el("a", { class: "button", id: "explanation", href: `explain.html#${explained}&pins=${latent}` }, "All latents of this image"),
        el("div", { class: "tools" }, step(-1, "←", "previous"), step(1, "→", "next"),
          el("button", { type: "button", onclick: () => dialog.close() }, "Close"))));
    report.remember({ image: index });
  }

  function move(by) {
    if (!entries[place + by]) return;
    place += by;
    draw();
    dialog.focus();
  }

  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); move(by); }
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    dialog.remove();
    report.remember({ image: null });
    onClose(place);
  });
  draw();
  document.body.append(dialog);
  dialog.showModal();
}
