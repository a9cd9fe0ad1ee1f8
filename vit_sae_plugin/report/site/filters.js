"use strict";
// Which latents are shown, and in which order: asked by the index and by what steps through it.
function openFilters(atlas) {
  const { latents } = atlas;
  const n = latents.id.length;
  const hasEntropy = latents.entropy.some((value) => value !== null);
  const usual = hasEntropy ? ["entropy", "ascending"] : ["frequency", "descending"];
  const fields = ["search", "class", "frequency-low", "frequency-high", "mean-low", "mean-high", "entropy-low",
    "entropy-high", "measure", "measure-low", "measure-high", "hide-dense", "named"];
  const values = {
    id: (i) => latents.id[i],
    what: (i) => report.describe(atlas, i).title.toLowerCase(),
    frequency: (i) => latents.frequency[i],
    mean: (i) => latents.mean[i],
    max: (i) => latents.max[i],
    entropy: (i) => latents.entropy[i],
  };
  const orders = new Map();
  document.addEventListener("namechange", () => orders.clear());

  // What an address says, and nothing else of it.
  function viewOf(state) {
    const view = new URLSearchParams();
    for (const field of [...fields, "sort"]) if (state.get(field)) view.set(field, state.get(field));
    return view;
  }

  function share(i, index) {
    const place = latents.classes[i].indexOf(index);
    return place < 0 ? null : latents.class_shares[i][place] ?? null;
  }

  // The further measure that is looked at, if there is one of the name in the address.
  function measureOf(view) {
    const name = view.get("measure");
    return name && Object.hasOwn(atlas.measures, name) ? name : null;
  }

  function sortOf(view) {
    const hasClass = Boolean(view.get("class"));
    const hasMeasure = measureOf(view) !== null;
    const [key, direction] = (view.get("sort") || "").split(",");
    const known = (Object.hasOwn(values, key) || (key === "share" && hasClass) || (key === "measure" && hasMeasure)) && ["ascending", "descending"].includes(direction);
    const [usualKey, usualDirection] = hasMeasure ? ["measure", "descending"] : hasClass ? ["share", "descending"] : usual;
    return known ? { key, direction } : { key: usualKey, direction: usualDirection };
  }

  // All latents in an order. Filters pick from it, so that typing sorts nothing.
  function ordered({ key, direction }, index, measure) {
    const name = `${key},${direction},${key === "share" ? index : key === "measure" ? measure : ""}`;
    if (!orders.has(name)) {
      const special = { share: (i) => share(i, index), measure: (i) => atlas.measures[measure][i] };
      const value = special[key] ?? values[key];
      const keys = latents.id.map((_, i) => value(i));
      const known = [];
      const missing = [];
      for (let i = 0; i < n; i++) (keys[i] === null || keys[i] === "" ? missing : known).push(i);
      const sign = direction === "ascending" ? 1 : -1;
      const { frequency } = latents;
      known.sort((a, b) => sign * (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0) || frequency[b] - frequency[a] || a - b);
      orders.set(name, [...known, ...missing]); // missing values come last either way
    }
    return orders.get(name);
  }

  // A word finds a latent by the beginning of its number, or inside its name, note or a class.
  function finder(word) {
    const classes = new Set();
    atlas.classes.forEach((name, index) => { if (name.toLowerCase().includes(word)) classes.add(index); });
    const named = new Set(atlas.naming.all().filter((latent) => {
      const { name, note } = atlas.naming.of(latent);
      return `${name}\n${note || ""}`.toLowerCase().includes(word);
    }));
    const isNumber = /^\d+$/.test(word);
    return (i) => latents.classes[i].some((index) => classes.has(index)) || (isNumber && String(latents.id[i]).startsWith(word))
      || named.has(latents.id[i]);
  }

  function choose(view) {
    const limit = (field, scale = 1) => (view.get(field) ? Number(view.get(field)) / scale : null);
    const words = (view.get("search") || "").trim().toLowerCase().split(/\s+/).filter(Boolean);
    const finders = words.map(finder);
    const index = view.get("class") ? Number(view.get("class")) : null;
    const measure = measureOf(view);
    const ranges = [
      ["frequency", latents.frequency, limit("frequency-low", 100), limit("frequency-high", 100)],
      ["mean act.", latents.mean, limit("mean-low"), limit("mean-high")],
      ["entropy", latents.entropy, limit("entropy-low"), limit("entropy-high")],
      ...(measure === null ? [] : [[report.measureName(measure), atlas.measures[measure], limit("measure-low"), limit("measure-high")]]),
    ].filter(([, , low, high]) => low !== null || high !== null);
    const [hideDense, named] = ["hide-dense", "named"].map((field) => view.get(field) === "1");
    const withName = new Set(named ? atlas.naming.all() : []);
    const sort = sortOf(view);
    const shown = ordered(sort, index, measure).filter((i) => finders.every((finds) => finds(i))
      && (index === null || latents.classes[i].includes(index))
      && !(hideDense && latents.dense[i])
      && !(named && !withName.has(latents.id[i]))
      && ranges.every(([, value, low, high]) => value[i] !== null && !(low !== null && value[i] < low) && !(high !== null && value[i] > high)));
    // the latent whose number was typed comes first
    const typed = words.length === 1 ? shown.findIndex((i) => String(latents.id[i]) === words[0]) : -1;
    if (typed > 0) shown.unshift(...shown.splice(typed, 1));
    const crossed = ranges.filter(([, , low, high]) => low !== null && high !== null && low > high).map(([what]) => what);
    return { shown, sort, crossed };
  }

  return { fields, hasEntropy, viewOf, share, measureOf, choose };
}
