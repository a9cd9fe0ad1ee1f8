"use strict";
// The masking study: how many latents a class hangs on.
report.open().then(async (atlas) => {
  const { el, svg, format } = report;
  const main = document.querySelector("main");
  report.navigation(atlas, "masking.html");
  document.title = "Masking";
  if (!atlas.has_masking) {
    main.replaceChildren(el("p", { class: "empty" }, "This report holds no masking study. ", el("a", { href: "index.html" }, "All latents")));
    return;
  }
  const study = await report.load("masking");
  const { conditions, facts } = study;
  const names = { class: "the class's top latents", selective: "the class's most selective", dataset: "the data set's top latents", random: "random latents" };
  const rankings = [...new Set(conditions.map(([ranking]) => ranking))].filter((ranking) => ranking !== "");
  const ks = [...new Set(conditions.filter(([ranking]) => ranking !== "").map(([, , , k]) => k))].sort((a, b) => a - b);
  const errors = [...new Set(conditions.filter(([ranking]) => ranking !== "").map(([, , error]) => error))];
  const titles = { on: "Only k latents kept", off: "k latents removed" };
  const percent = (value) => (100 * value).toFixed(1);
  const at = (ranking, mask, error, k) => conditions.findIndex((one) => one[0] === ranking && one[1] === mask
    && (mask === "original" || one[2] === error) && (k === null || one[3] === k));
  const labels = Object.keys(study.classes).map(Number);
  const classTitle = (label) => study.class_names[label];
  const inAtlas = (label) => atlas.classes[label] === classTitle(label);
  const leading = report.leadingClasses(atlas);

  function show() {
    const { state } = report.address();
    const wanted = state.get("class");
    const label = labels.map(String).includes(wanted) ? Number(wanted) : null;
    const error = errors.length > 1 ? state.get("error") === "1" : errors[0];
    const scope = label === null ? study.overall : study.classes[label];
    const choice = el("select", { id: "scope", "aria-label": "class", onchange: (event) => go({ class: event.target.value }) },
      el("option", { value: "" }, "all classes"),
      labels.map((one) => el("option", { value: one, selected: one === label }, classTitle(one))));
    const buttons = errors.length < 2 ? null : el("span", { class: "choice", role: "group", "aria-label": "error term" },
      [[false, "without"], [true, "with"]].map(([which, text]) => el("button", { type: "button", "data-error": Number(which),
        "aria-pressed": String(error === which), onclick: () => go({ error: which ? "1" : null }) }, text)));
    main.replaceChildren(
      el("h1", {}, "On how few latents a class hangs"),
      el("p", { class: "lead" }, "Of each image's latents only its class's first k are kept, or only they are removed; the model then classifies the image. ",
        `${format.count(scope.n_images)} images${label === null ? "" : " of this class"} of ${facts.images}; bands and brackets are 95 % bootstrap intervals over images.`),
      el("div", { class: "tools" }, el("label", { for: "scope" }, "Class"), choice,
        buttons === null ? null : el("span", { class: "note", style: "margin:0" }, "the SAE's error term"), buttons),
      ...masked(label),
      legend(),
      el("div", { class: "columns panels" }, ["on", "off"].map((mask) => panel(scope, mask, error))),
      el("h2", {}, "Accuracy in per cent"),
      el("p", { class: "note" }, reference(scope, error)),
      ...["on", "off"].map((mask) => table(scope, mask, error)),
      ...(label === null ? [el("h2", {}, "Class by class"), el("p", { class: "note" }, classNote()), classTable(error)] : []));
  }

  function go(changes) {
    report.remember(changes);
    show();
  }

  // The latents that are masked first in a class, each with its reference images.
  function masked(label) {
    if (label === null) return [];
    return Object.entries(study.latents).filter(([, of]) => of[label]).map(([ranking, of]) => el("div", { class: "first" },
      el("span", { class: "note" }, names[ranking]),
      el("div", { class: "firsts" }, of[label].map((latent) => latentLink(latent, true)))))
      .concat(inAtlas(label) && leading.has(label) ? [el("p", { class: "note prose" },
        el("a", { href: `index.html#class=${label}` }, `All latents that ${classTitle(label)} leads`))] : []);
  }

  function latentLink(latent, pictured) {
    const position = atlas.position.get(latent);
    if (position === undefined) return el("span", { class: "first-latent minor", title: "dead or not shown" }, String(latent));
    return el("a", { class: "first-latent", href: report.latentLink(latent), "data-latent": latent, title: report.describe(atlas, position).title },
      pictured ? report.strip(atlas, position, 1) : "", String(latent));
  }

  function legend() {
    return el("div", { class: "keys" }, rankings.map((ranking) => {
      const sample = svg("svg", { viewBox: "0 0 34 12", width: 34, height: 12, "aria-hidden": "true" },
        svg("line", { class: `line ${ranking}`, x1: 1, x2: 33, y1: 6, y2: 6 }));
      return el("span", {}, sample, names[ranking] ?? ranking);
    }));
  }

  function panel(scope, mask, error) {
    const [width, height, left, right, top, bottom] = [560, 300, 40, 58, 14, 252];
    const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": `${titles[mask]}: accuracy against k` });
    const [low, high] = [Math.log(ks[0]), Math.log(Math.max(ks.at(-1), ks[0] + 1))];
    const x = (k) => left + (Math.log(k) - low) / (high - low || 1) * (width - left - right);
    const y = (share) => bottom - share * (bottom - top);
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      chart.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
        svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`));
    }
    let last = -Infinity;
    for (const k of ks) {
      chart.append(svg("line", { class: "axis", x1: x(k), x2: x(k), y1: bottom, y2: bottom + 4 }));
      if (x(k) - last < 34) continue;
      last = x(k);
      chart.append(svg("text", { x: x(k), y: bottom + 17, "text-anchor": "middle" }, format.count(k)));
    }
    chart.append(svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, "latents (k), log scale"));
    const heights = [];
    for (const name of ["original", "all on", "all off"]) {
      const place = at("", name, error, null);
      if (place < 0) continue;
      const level = y(scope.values[place][0]);
      let text = level;
      while (heights.some((other) => Math.abs(other - text) < 11)) text += 11;
      heights.push(text);
      chart.append(svg("line", { class: `level ${name.replace(" ", "-")}`, x1: left, x2: width - right, y1: level, y2: level }),
        svg("text", { x: width - right + 5, y: text + 4 }, name));
    }
    for (const ranking of rankings) {
      const points = ks.map((k) => [k, scope.values[at(ranking, mask, error, k)]]);
      const band = [...points.map(([k, [, , up]]) => `${x(k)},${y(up)}`), ...points.map(([k, [, down]]) => `${x(k)},${y(down)}`).reverse()];
      chart.append(svg("polygon", { class: `band ${ranking}`, points: band.join(" ") }),
        svg("polyline", { class: `line ${ranking}`, points: points.map(([k, [mean]]) => `${x(k)},${y(mean)}`).join(" ") }));
      for (const [k, [mean, down, up]] of points) {
        const dot = svg("circle", { class: `dot ${ranking}`, cx: x(k), cy: y(mean), r: 3.2 });
        dot.append(svg("title", {}, `${names[ranking] ?? ranking}, k = ${format.count(k)}: ${percent(mean)} % (${percent(down)} to ${percent(up)})`));
        chart.append(dot);
      }
    }
    return el("section", { class: "panel", "data-mask": mask }, el("h3", {}, titles[mask]), chart);
  }

  function cell([mean, down, up]) { return el("td", {}, percent(mean), el("span", { class: "minor" }, ` ${percent(down)}–${percent(up)}`)); }

  function table(scope, mask, error) {
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": titles[mask] }, el("table", { class: "plain", "data-mask": mask },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, { on: "Latents kept", off: "Latents removed" }[mask]), ks.map((k) => el("th", { scope: "col" }, `k = ${format.count(k)}`)))),
      el("tbody", {}, rankings.map((ranking) => el("tr", {}, el("th", { scope: "row" }, names[ranking] ?? ranking),
        ks.map((k) => cell(scope.values[at(ranking, mask, error, k)])))))));
  }

  function reference(scope, error) {
    const say = { original: "the model itself", "all on": "all latents kept", "all off": "all removed" };
    return "For reference: " + Object.entries(say).map(([name, words]) => [words, at("", name, error, null)]).filter(([, place]) => place >= 0)
      .map(([words, place]) => `${words} ${percent(scope.values[place][0])} (${percent(scope.values[place][1])} to ${percent(scope.values[place][2])})`).join("; ") + ".";
  }

  const shownK = ks.includes(10) ? 10 : ks[Math.floor(ks.length / 2)];
  const shownRanking = rankings.includes("class") ? "class" : rankings[0];
  function classNote() {
    return `Accuracy of each class with all latents, and with the first ${format.count(shownK)} of ${names[shownRanking]} removed; the classes that lose most come first. The latents are the first of each class.`;
  }

  function classTable(error) {
    const before = at("", errors.includes(false) && !error ? "all on" : "original", error, null);
    const after = at(shownRanking, "off", error, shownK);
    const of = study.latents[shownRanking] ?? Object.values(study.latents)[0] ?? {};
    const rows = labels.map((label) => ({ label, values: study.classes[label].values }))
      .sort((a, b) => (b.values[before][0] - b.values[after][0]) - (a.values[before][0] - a.values[after][0]));
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "class by class" }, el("table", { class: "plain by-class" },
      el("thead", {}, el("tr", {}, ["class", "images", "all latents", `${format.count(shownK)} removed`, "", "its latents"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows.map(({ label, values }) => el("tr", { "data-class": label },
        el("th", { scope: "row" }, el("a", { href: `#class=${label}` }, classTitle(label))),
        el("td", {}, format.count(study.classes[label].n_images)), cell(values[before]), cell(values[after]),
        el("td", { class: "fall" }, el("span", { class: "track" }, el("span", { class: "left", style: `width:${100 * values[after][0]}%` }),
          el("span", { class: "lost", style: `width:${100 * Math.max(0, values[before][0] - values[after][0])}%` }))),
        el("td", { class: "links" }, (of[label] ?? []).slice(0, 5).map((latent) => latentLink(latent, false))))))));
  }

  window.addEventListener("hashchange", () => { show(); window.scrollTo(0, 0); });
  show();
}).catch(report.fail);
