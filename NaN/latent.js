"use strict";
report.load("atlas").then((atlas) => {
  const { el, svg, format } = report;
  const { latents } = atlas;
  const main = document.querySelector("main");
  const hasLabels = report.leadingClasses(atlas).size > 0;
  report.navigation(atlas, "latent.html");

  function show() {
    const latent = Number(location.hash.slice(1));
    const position = latents.id.indexOf(latent);
    main.replaceChildren();
    window.scrollTo(0, 0);
    if (location.hash.length < 2 || position < 0) {
      main.append(el("p", { class: "empty" }, reasonForNone(latent), " ", el("a", { href: "index.html" }, "All latents")));
      return;
    }
    document.title = `Latent ${latent}`;
    const chunk = String(Math.floor(position / atlas.latents_in_a_file)).padStart(5, "0");
    report.load(`latents/${chunk}`).then((data) => draw(latent, position, data)).catch(report.fail);
  }

  function reasonForNone(latent) {
    if (location.hash.length < 2 || !(latent >= 0 && latent < atlas.facts.d_sae)) return "There is no such latent.";
    if (atlas.dead.includes(latent)) return `Latent ${latent} is dead: no token of any image activates it.`;
    return `Latent ${latent} is not among those that this report shows.`;
  }

  function draw(latent, position, data) {
    const details = data.latents[latent];
    const neighbour = (step, text) => {
      const other = latents.id[position + step];
      return other === undefined ? null : el("a", { href: `#${other}`, rel: step < 0 ? "prev" : "next" }, text);
    };
    const fact = (name, value, meaning) => el("div", { title: meaning }, el("dt", {}, name), el("dd", {}, value));
    main.replaceChildren(
      el("div", { class: "tools", style: "margin:30px 0 0;color:var(--soft);font-size:13.5px" },
        report.backToLatents(), el("span", { class: "gap" }),
        neighbour(-1, "← previous"), neighbour(1, "next →")),
      el("h1", { style: "margin-top:6px" }, `Latent ${latent}`),
      el("p", { class: "lead", style: "margin-bottom:0" }, lead(position, details, data.images)),
      el("dl", { class: "facts" },
        fact("frequency", format.share(latents.frequency[position]), "share of images in which any token activates it"),
        fact("of tokens", format.share(latents.token_frequency[position]), "share of all tokens that activate it"),
        fact("images", format.count(latents.n_active_images[position]), "images in which any token activates it"),
        fact("mean activation", format.number(latents.mean[position]), "of the images' token means, over the images where that is positive"),
        fact("max activation", format.number(latents.max[position]), "at any token of any image"),
        !hasLabels ? null : fact("label entropy", format.entropy(latents.entropy[position]), "of its reference images' labels, weighted by activation, in nats; 0 is one label only"),
        !hasLabels ? null : fact("label std", format.number(latents.std[position]), "standard deviation of its reference images' label indices")),
      references(details, data.images),
      el("div", { class: "columns" },
        !hasLabels ? null : section("classes", "Top classes", `Of the classes with most tokens above ${atlas.facts.threshold}: how many an image has, and all images of the class.`, classBars(details)),
        section("activations", "Activations", "How many tokens activate it, and how strongly.", histogram(details.histogram)),
        section("coactive", "Active together", "Latents that fire on the same images: images with both ÷ images with either.", relatives(details.coactive)),
        section("similar", "Alike in direction", "Latents that write a similar direction: cosine of the decoder rows.", relatives(details.similar))),
      ...explainedHere(latent));
  }

  // Its name, or the class that leads among its reference images, and how many of them that is.
  function lead(position, details, images) {
    const name = latents.name[position];
    const labels = details.references[firstRule(details)].map(([index]) => images[index][1]);
    const parts = latents.classes[position].map((label, k) => [
      name || k ? report.className(atlas, label) : el("b", {}, report.className(atlas, label)),
      ` ${labels.filter((other) => other === label).length} of ${labels.length}`]);
    const classes = parts.flatMap((part, k) => [k ? ", " : "", ...part]);
    return [name ? el("b", {}, name) : "", name && classes.length ? " · " : "", ...classes,
      classes.length ? " reference images" : "",
      latents.dense[position] ? `${name || classes.length ? " · " : ""}dense` : ""];
  }

  function section(id, title, note, ...children) {
    return el("section", { id }, el("h2", {}, title), el("p", { class: "note" }, note), ...children);
  }

  // The first rule under which it has reference images: one that is never above the threshold has none by count.
  function firstRule(details) {
    return atlas.aggregations.find((name) => details.references[name].length) ?? atlas.aggregations[0];
  }

  function references(details, images) {
    const grid = el("div", { class: "gallery references" });
    const buttons = atlas.aggregations.map((name) => el("button", {
      type: "button", "data-aggregation": name, onclick: () => choose(name),
    }, name));
    function choose(name) {
      for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.aggregation === name);
      grid.replaceChildren(...details.references[name].map(([index, value]) => {
        const [mask, largest] = details.masks[index];
        const [id, label] = images[index];
        return el("figure", { class: "figure" },
          report.picture(report.pictureFile(atlas, index), atlas.grid, mask ? report.shares(mask) : null,
            { title: `largest activation ${format.number(largest)}` }),
          el("div", {}, el("b", {}, format.number(value)), label === null ? "" : ` ${report.className(atlas, label)}`),
          el("div", { title: id }, id));
      }));
      if (!details.references[name].length) grid.append(el("p", { class: "note" }, `No image has a positive ${name}.`));
    }
    choose(firstRule(details));
    return el("section", {},
      el("h2", {}, "Reference images"),
      el("div", { class: "tools" },
        el("span", { class: "note", style: "margin:0" }, 
          `The images that activate it most${atlas.has_patches ? ", bright in the patches where it is active" : ""}. Ranked by`),
        el("span", { class: "choice" }, buttons)),
      grid);
  }

  function classBars(details) {
    if (!details.classes.length) return el("p", { class: "note" }, `No labelled image has a token above ${atlas.facts.threshold}.`);
    const classes = [...details.classes].sort((a, b) => b[2] - a[2]);
    const highest = classes[0][2];
    const leading = report.leadingClasses(atlas);
    return el("div", { class: "bars" },
      el("div", { class: "entry minor" }, el("span"), el("span"), el("span", { class: "num" }, "per image"), el("span", { class: "num" }, "in all")),
      classes.map(([index, count, perImage, share]) =>
        el("div", { class: "entry", title: `${format.share(share)} of the tokens of all classes` },
          leading.has(index) ? el("a", { href: `index.html#class=${index}` }, report.className(atlas, index))
            : el("span", {}, report.className(atlas, index)),
          el("span", { class: "track" }, el("div", { class: "fill", style: `width:${100 * perImage / highest}%` })),
          el("span", { class: "num" }, format.number(perImage)), el("span", { class: "num minor" }, format.count(count)))));
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

  function relatives(pairs) {
    if (!pairs.length) return el("p", { class: "note" }, "None.");
    return el("div", { class: "relatives" }, pairs.slice(0, 6).map(([other, score]) => {
      const position = latents.id.indexOf(other);
      const known = position >= 0;
      return el(known ? "a" : "div", { class: "relative", href: known ? `#${other}` : null },
        el("span", { class: "id" }, String(other)),
        known ? report.strip(atlas, position) : el("span", { class: "minor" }, "dead or not shown"),
        el("span", { class: "what" }, el("div", {}, known ? report.describe(atlas, position).title : "")),
        el("span", { class: "num" }, score.toFixed(2)));
    }));
  }

  function explainedHere(latent) {
    const found = atlas.explained.map((entry, i) => [entry, i]).filter(([entry]) => entry.latents.includes(latent));
    if (!found.length) return [];
    return [section("explained", "Explained images", "Where it is among the strongest latents.",
      el("div", { class: "gallery" }, found.map(([, i]) => report.explainedCard(atlas, i))))];
  }

  window.addEventListener("hashchange", show);
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, button")) return;
    const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    if (rel && !event.metaKey && !event.ctrlKey && !event.altKey) document.querySelector(`a[rel="${rel}"]`)?.click();
  });
  show();
}).catch(report.fail);
