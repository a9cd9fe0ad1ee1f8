"use strict";
// The tree of latents: a latent lies under another that is active almost wherever it is.
report.open().then((atlas) => report.load("tree").then((tree) => {
  const { el, format } = report;
  report.navigation(atlas, "tree.html");
  const children = new Map();
  for (const [latent, entry] of Object.entries(tree.latents)) {
    const below = children.get(entry.parent) ?? [];
    below.push(Number(latent));
    children.set(entry.parent, below);
  }
  for (const below of children.values()) below.sort((a, b) => tree.active[b] - tree.active[a] || a - b);
  const below = (latent) => children.get(latent) ?? [];
  const sizes = new Map();
  function size(latent) {
    if (!sizes.has(latent)) sizes.set(latent, below(latent).reduce((sum, child) => sum + 1 + size(child), 0));
    return sizes.get(latent);
  }
  const roots = [...children.keys()].filter((latent) => !Object.hasOwn(tree.latents, latent))
    .sort((a, b) => size(b) - size(a) || a - b);
  const { settings } = tree;
  document.getElementById("facts").append(
    `A latent is under the most special other one that is active at ${format.number(100 * settings.min_p_parent)} % or more of the `,
    `tokens that activate it, while it is active at ${format.number(100 * settings.max_p_child)} % of the other's at most; both shares stand at the right. Counted over `,
    el("b", {}, format.count(settings.n_tokens)), ` tokens${settings.k ? `, of each of which the ${settings.k} strongest latents count` : ""}.`);
  const found = document.getElementById("found");
  found.append(el("b", {}, format.count(Object.keys(tree.latents).length)), " latents under ",
    el("b", {}, format.count(roots.length)), " others. Arrow keys move, open and close; Enter goes to the latent.");

  const top = el("ul", { role: "tree", class: "tree", "aria-label": "latents" }, roots.map((latent) => item(latent, 1)));
  document.getElementById("tree").append(top);

  // An item is drawn with its children closed; they are drawn when it is first opened.
  function item(latent, level) {
    const position = atlas.position.get(latent);
    const entry = tree.latents[latent];
    const { title, minor } = position === undefined ? { title: "", minor: "" } : report.describe(atlas, position);
    const n = size(latent);
    const toggle = n === 0 ? el("span", { class: "toggle" }) : el("button", { type: "button", class: "toggle", tabindex: -1, "aria-hidden": "true" });
    const link = el("a", { class: "entry", href: position === undefined ? null : report.latentLink(latent), tabindex: -1 },
      el("b", { class: "id" }, String(latent)),
      position === undefined ? null : report.strip(atlas, position, 5),
      el("span", { class: "what" }, el("div", { title }, title || "not in this report"), el("div", { class: "minor", title: minor }, minor)),
      el("span", { class: "num", title: "share of its tokens at which the latent above is active, and share of that one's at which it is" },
        entry ? `${format.share(entry.p_parent)} · ${format.share(entry.p_child)}` : ""),
      el("span", { class: "num", title: "latents below it" }, n ? `${format.count(n)} below` : ""));
    const node = el("li", { role: "treeitem", "aria-level": level, "aria-expanded": n ? "false" : null, tabindex: -1, "data-latent": latent,
      "aria-label": `latent ${latent}${title ? `, ${title}` : ""}${n ? `, ${n} below` : ""}` }, el("div", { class: "line" }, toggle, link));
    if (n) toggle.addEventListener("click", () => open(node, node.getAttribute("aria-expanded") === "false"));
    return node;
  }

  function open(node, wanted) {
    if (!node.hasAttribute("aria-expanded")) return;
    node.setAttribute("aria-expanded", String(wanted));
    let group = node.querySelector(":scope > ul");
    if (wanted && !group) {
      const level = Number(node.getAttribute("aria-level")) + 1;
      group = el("ul", { role: "group" }, below(Number(node.dataset.latent)).map((latent) => item(latent, level)));
      node.append(group);
    }
    if (group) group.hidden = !wanted;
  }

  function setAll(wanted) {
    let waiting = [...top.children];
    while (waiting.length) {
      for (const node of waiting) open(node, wanted);
      waiting = waiting.flatMap((node) => [...(node.querySelector(":scope > ul")?.children ?? [])]);
    }
  }
  document.getElementById("open-all").addEventListener("click", () => setAll(true));
  document.getElementById("close-all").addEventListener("click", () => { setAll(false); focus(top.firstElementChild); });

  // One item can be reached by Tab; arrow keys move from there, as in any tree.
  function focus(node) {
    if (!node) return;
    for (const other of top.querySelectorAll('[role="treeitem"][tabindex="0"]')) other.tabIndex = -1;
    node.tabIndex = 0;
    node.focus();
  }
  if (top.firstElementChild) top.firstElementChild.tabIndex = 0;
  top.addEventListener("focusin", (event) => {
    const node = event.target.closest('[role="treeitem"]');
    if (node && event.target !== node) focus(node);
  });
  top.addEventListener("keydown", (event) => {
    const node = event.target.closest('[role="treeitem"]');
    if (!node || event.metaKey || event.ctrlKey || event.altKey) return;
    const shown = [...top.querySelectorAll('[role="treeitem"]')].filter((other) => !other.parentElement.closest("ul[hidden]"));
    const here = shown.indexOf(node);
    const isOpen = node.getAttribute("aria-expanded") === "true";
    const moves = {
      ArrowDown: () => focus(shown[here + 1]), ArrowUp: () => focus(shown[here - 1]),
      Home: () => focus(shown[0]), End: () => focus(shown.at(-1)),
      ArrowRight: () => (isOpen ? focus(node.querySelector('[role="treeitem"]')) : open(node, true)),
      ArrowLeft: () => (isOpen ? open(node, false) : focus(node.parentElement.closest('[role="treeitem"]'))),
      Enter: () => node.querySelector("a.entry[href]")?.click(),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  });
})).catch(report.fail);
