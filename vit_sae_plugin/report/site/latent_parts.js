"use strict";
// The pieces a latent's page is made of, on its own or beside another latent.
function openLatentParts(atlas) {
  const { el, svg, format } = report;
  const { latents, facts } = atlas;
  const leading = report.leadingClasses(atlas);
  const hasLabels = leading.size > 0;

  function details(position) {
    const file = String(Math.floor(position / atlas.latents_in_a_file)).padStart(5, "0");
    return report.load(`latents/${file}`);
  }

  function reasonForNone(text) {
    const latent = Number(text);
    if (text === "" || !(latent >= 0 && latent < facts.d_sae)) return "There is no such latent.";
    if (atlas.dead.includes(latent)) return `Latent ${latent} is dead: no token of any image activates it.`;
    return `Latent ${latent} is not among those that this report shows.`;
  }

  function section(id, title, note, ...children) {
    return el("section", { id }, el("h2", {}, title), el("p", { class: "note" }, note), ...children);
  }

  // Its name, or the class that leads among its reference images, and how many of them that is.
  function lead(position, data, images) {
    const name = atlas.naming.of(latents.id[position])?.name || "";
    const labels = data.references[firstRule(data)].map(([index]) => images[index][1]);
    const parts = latents.classes[position].map((label, k) => [
      name || k ? report.className(atlas, label) : el("b", {}, report.className(atlas, label)),
      ` ${labels.filter((other) => other === label).length} of ${labels.length}`]);
    const classes = parts.flatMap((part, k) => [k ? ", " : "", ...part]);
    return [name ? el("b", {}, name) : "", name && classes.length ? " · " : "", ...classes,
      classes.length ? " reference images" : "",
      latents.dense[position] ? `${name || classes.length ? " · " : ""}dense` : ""];
  }

  function numbers(position) {
    const fact = (name, value, meaning) => el("div", { title: meaning }, el("dt", {}, name), el("dd", {}, value));
    return el("dl", { class: "facts" },
      fact("frequency", format.share(latents.frequency[position]), "share of images in which any token activates it"),
      fact("of tokens", format.share(latents.token_frequency[position]), "share of all tokens that activate it"),
      fact("images", format.count(latents.n_active_images[position]), "images in which any token activates it"),
      fact("mean activation", format.number(latents.mean[position]), "of the images' token means, over the images where that is positive"),
      fact("max activation", format.number(latents.max[position]), "at any token of any image"),
      !hasLabels ? null : fact("label entropy", format.entropy(latents.entropy[position]), "of its reference images' labels, weighted by activation, in nats; 0 is one label only"),
      !hasLabels ? null : fact("label std", format.number(latents.std[position]), "standard deviation of its reference images' label indices"),
      Object.entries(atlas.measures).map(([name, values]) => fact(report.measureName(name), format.number(values[position]), "a further measure of the atlas")));
  }

  // The first rule under which it has reference images: one that is never above the threshold has none by count.
  function firstRule(data) {
    return atlas.aggregations.find((name) => data.references[name].length) ?? atlas.aggregations[0];
  }

  // Its reference images by a rule, each a button that enlarges it; `others` are marked as shared.
  function figures(latent, data, images, rule, others = null) {
    const entries = data.references[rule].map(([index, value]) => {
      const [mask, largest] = data.masks[index];
      const [id, label] = images[index];
      return { index, value, mask, largest, id, label };
    });
    const buttons = entries.map((entry, place) => el("button", {
      type: "button", class: `figure${others?.has(entry.index) ? " shared" : ""}`, "data-image": entry.index,
      title: others?.has(entry.index) ? "a reference image of both" : `largest activation ${format.number(entry.largest)}`,
      onclick: () => enlarge(place),
    }, report.picture(report.pictureFile(atlas, entry.index), atlas.grid, entry.mask ? report.shares(entry.mask) : null),
    el("span", { class: "line" }, el("b", {}, format.number(entry.value)), entry.label === null ? "" : ` ${report.className(atlas, entry.label)}`),
    el("span", { class: "line", title: entry.id }, entry.id)));
    function enlarge(place) { openLightbox(atlas, latent, rule, entries, place, (last) => buttons[last]?.focus()); }
    const grid = el("div", { class: "gallery references" }, buttons);
    if (!entries.length) grid.append(el("p", { class: "note" }, `No image has a positive ${rule}.`));
    report.arrows(grid, ".figure");
    return { grid, enlarge: (index) => { const place = entries.findIndex((entry) => entry.index === index); if (place >= 0) enlarge(place); } };
  }

  function rules(chosen, onChoose) {
    return el("span", { class: "choice", role: "group", "aria-label": "ranked by" }, atlas.aggregations.map((name) => el("button", {
      type: "button", "data-aggregation": name, "aria-pressed": String(name === chosen), onclick: () => onChoose(name),
    }, name)));
  }

  // Counts favour classes of many images, rates don't: of unbalanced data they differ.
  function classBars(data) {
    if (!data.classes.length) return el("p", { class: "note" }, `No labelled image has a token above ${format.number(facts.threshold)}.`);
    const bars = el("div", { class: "bars" });
    const ways = [["rate", "per image", 2], ["count", "in all", 1]];
    const buttons = ways.map(([way, text]) => el("button", { type: "button", "data-classes": way, onclick: () => choose(way) }, text));
    function choose(way) {
      const [, , column] = ways.find(([name]) => name === way);
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.classes === way));
      const classes = [...data.classes].sort((a, b) => b[column] - a[column]).slice(0, 10);
      bars.replaceChildren(
        el("div", { class: "entry minor" }, el("span"), el("span"), el("span", { class: "num" }, "per image"), el("span", { class: "num" }, "in all")),
        ...classes.map((one) => el("div", { class: "entry", title: `${format.share(one[3])} of the tokens of all classes` },
          leading.has(one[0]) ? el("a", { href: `index.html#class=${one[0]}` }, report.className(atlas, one[0]))
            : el("span", {}, report.className(atlas, one[0])),
          el("span", { class: "track" }, el("div", { class: "fill", style: `width:${100 * one[column] / classes[0][column]}%` })),
          el("span", { class: "num" }, format.number(one[2])), el("span", { class: "num minor" }, format.count(one[1])))));
    }
    choose("rate");
    return el("div", {}, el("div", { class: "tools tight" }, el("span", { class: "choice", role: "group", "aria-label": "classes by" }, buttons)), bars);
  }

  function histogram(counts) {
    let first = counts.findIndex((count) => count > 0);
    let last = counts.length - 1 - [...counts].reverse().findIndex((count) => count > 0);
    if (first < 0) return el("p", { class: "note" }, "Never active.");
    first = Math.max(0, first - 2);
    last = Math.min(counts.length - 1, last + 2);
    const [width, height, bottom, left] = [520, 204, 164, 46];
    const highest = Math.max(...counts);
    const step = (width - left) / (last - first + 1);
    const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img" });
    for (const share of [0.5, 1].filter((share) => Number.isInteger(highest * share))) {
      const y = bottom - share * (bottom - 12);
      chart.append(svg("line", { class: "grid", x1: left, x2: width, y1: y, y2: y }),
        svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, shortCount(highest * share)));
    }
    for (let k = first; k <= last; k++) {
      const size = counts[k] / highest * (bottom - 12);
      const bar = svg("rect", { class: "fill", x: left + (k - first) * step + 0.5, width: Math.max(1, step - 1), y: bottom - size, height: size });
      bar.append(svg("title", {}, `${format.number(atlas.edges[k])} to ${format.number(atlas.edges[k + 1])}: ${format.count(counts[k])}`));
      chart.append(bar);
    }
    const place = (value) => (Math.log10(value / atlas.edges[first]) / Math.log10(atlas.edges[last + 1] / atlas.edges[first])) * (width - left) + left;
    const decades = Math.log10(atlas.edges[last + 1] / atlas.edges[first]);
    for (let power = Math.floor(Math.log10(atlas.edges[first])); power <= 5; power++) {
      for (const digit of decades > 2.5 ? [1] : [1, 2, 5]) {
        const x = place(digit * 10 ** power);
        if (x < left - 1 || x > width - 8) continue;
        chart.append(svg("line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 4 }),
          svg("text", { x, y: bottom + 17, "text-anchor": "middle" },
            decades > 2.5 ? format.power(power) : format.number(digit * 10 ** power)));
      }
    }
    chart.append(svg("line", { class: "axis", x1: left, x2: width, y1: bottom, y2: bottom }),
      svg("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "activation of a token, log scale"));
    return chart;
  }

  function shortCount(value) {
    return value >= 1e6 ? `${format.number(value / 1e6)}M` : value >= 1e3 ? `${format.number(value / 1e3)}k` : format.number(value);
  }

  // Other latents with a score; `beside` gives the link that shows one beside this latent.
  function relatives(pairs, { view = "", beside = null } = {}) {
    if (!pairs.length) return el("p", { class: "note" }, "None.");
    return report.arrows(el("div", { class: "relatives" }, pairs.slice(0, 6).map(([other, score]) => {
      const position = atlas.position.get(other);
      if (position === undefined) {
        return el("div", { class: "relative" }, el("span", { class: "id" }, String(other)),
          el("span", { class: "minor" }, "dead or not shown"), el("span"), el("span", { class: "num" }, score.toFixed(2)));
      }
      return el("div", { class: "relative" },
        el("a", { class: "whole", href: report.latentLink(other, view), "data-latent": other },
          el("span", { class: "id" }, String(other)), report.strip(atlas, position),
          el("span", { class: "what" }, el("div", {}, report.describe(atlas, position).title)),
          el("span", { class: "num" }, score.toFixed(2))),
        beside === null ? null : el("a", { class: "both", href: beside(other), title: "side by side", "aria-label": `side by side with ${other}` }, "⇄"));
    })), "a.whole");
  }

  const classesNote = `Of the classes with most tokens above ${format.number(facts.threshold)}, an image or in all: how many an image has, and all images of the class.`;

  return { hasLabels, details, reasonForNone, section, lead, numbers, firstRule, figures, rules, classBars, classesNote, histogram, relatives };
}
