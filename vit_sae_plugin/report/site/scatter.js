"use strict";
// Frequency against mean activation, coloured by label entropy, with marginal histograms.
function drawScatter(atlas, canvas, tip, { onOpen, onSelect }) {
  const { el, format } = report;
  const { id, frequency, mean, entropy } = atlas.latents;
  const [width, height] = [500, 420];
  const plot = { left: 58, top: 62, right: 424, bottom: 372 };
  const log = Math.log10;
  const shown = id.map((_, i) => i).filter((i) => frequency[i] > 0 && mean[i] > 0);
  const hasEntropy = entropy.some((value) => value !== null);
  const highest = shown.reduce((most, i) => Math.max(most, entropy[i] ?? 0), 0.1);

  function axis(values) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    if (!(low < high)) { low = (Number.isFinite(low) ? low : 0) - 0.5; high = low + 1; }
    const margin = (high - low) * 0.04;
    return [low - margin, high + margin];
  }
  const xs = shown.map((i) => log(frequency[i]));
  const ys = shown.map((i) => log(mean[i]));
  const [x0, x1] = axis(xs);
  const [y0, y1] = axis(ys);
  const toX = (x) => plot.left + (x - x0) / (x1 - x0) * (plot.right - plot.left);
  const toY = (y) => plot.bottom - (y - y0) / (y1 - y0) * (plot.bottom - plot.top);
  const points = shown.map((i, k) => ({ i, x: toX(xs[k]), y: toY(ys[k]), rgb: report.entropyColour(entropy[i], highest) }));

  let kept = null;
  let brush = null;

  function ticks(low, high) {
    const powers = [];
    for (let p = Math.ceil(low); p <= Math.floor(high); p++) powers.push([p, 10 ** p, format.power(p)]);
    if (powers.length >= 2) return powers;
    const found = [];
    for (let p = Math.floor(low) - 1; p <= high; p++) {
      for (const step of [1, 2, 5]) {
        const value = step * 10 ** p;
        if (log(value) >= low && log(value) <= high) found.push([log(value), value, format.number(value)]);
      }
    }
    return found;
  }

  function histogram(values, low, high, n) {
    const counts = new Array(n).fill(0);
    for (const value of values) counts[Math.min(n - 1, Math.floor((value - low) / (high - low) * n))]++;
    return counts;
  }

  function paint() {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `11px ${colour("--sans")}`;
    context.lineWidth = 1;

    context.strokeStyle = colour("--line");
    context.fillStyle = colour("--soft");
    context.textAlign = "center";
    const percent = (value) => `${Number((value * 100).toPrecision(2))} %`;
    for (const [place, value] of ticks(x0, x1)) {
      line(context, toX(place), plot.top, toX(place), plot.bottom);
      context.fillText(percent(value), toX(place), plot.bottom + 16);
    }
    context.textAlign = "right";
    for (const [place, , label] of ticks(y0, y1)) {
      line(context, plot.left, toY(place), plot.right, toY(place));
      context.fillText(label, plot.left - 7, toY(place) + 4);
    }
    context.strokeStyle = colour("--rule");
    context.strokeRect(plot.left + 0.5, plot.top + 0.5, plot.right - plot.left, plot.bottom - plot.top);
    context.textAlign = "center";
    context.fillText("activated frequency", (plot.left + plot.right) / 2, height - 12);
    context.save();
    context.translate(12, (plot.top + plot.bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("mean activation", 0, 0);
    context.restore();

    const n = 44;
    context.fillStyle = colour("--bar");
    const across = histogram(xs, x0, x1, n);
    const tallest = Math.max(...across, 1);
    across.forEach((count, k) => {
      const step = (plot.right - plot.left) / n;
      const size = count / tallest * 46;
      context.fillRect(plot.left + k * step, plot.top - 6 - size, step - 1, size);
    });
    const up = histogram(ys, y0, y1, n);
    const widest = Math.max(...up, 1);
    up.forEach((count, k) => {
      const step = (plot.bottom - plot.top) / n;
      const size = count / widest * 46;
      context.fillRect(plot.right + 6, plot.bottom - (k + 1) * step, size, step - 1);
    });

    const plain = colour(hasEntropy ? "--faint" : "--accent");
    if (points.length > 4000) dots(context, plain, ratio); else circles(context, plain);

    if (hasEntropy) paintKey(context, colour);

    if (brush) {
      context.fillStyle = colour("--accent");
      context.globalAlpha = 0.12;
      context.fillRect(brush.x, brush.y, brush.w, brush.h);
      context.globalAlpha = 1;
      context.strokeStyle = colour("--accent");
      context.strokeRect(brush.x + 0.5, brush.y + 0.5, brush.w, brush.h);
    }
  }

  function circles(context, plain) {
    for (const inside of kept ? [0, 1] : [1]) {
      context.globalAlpha = inside ? 0.8 : 0.1;
      for (const { i, x, y, rgb } of points) {
        if (kept && kept[i] !== inside) continue;
        context.fillStyle = rgb ? `rgb(${rgb.join(",")})` : plain;
        context.beginPath();
        context.arc(x, y, rgb || !hasEntropy ? 2.6 : 2, 0, 2 * Math.PI);
        context.fill();
      }
    }
    context.globalAlpha = 1;
  }

  // Tens of thousands of dots are small squares, set pixel by pixel: the canvas's own shapes would
  // take a tenth of a second.
  function dots(context, plain, ratio) {
    const [w, h] = [canvas.width, canvas.height];
    const pixels = new ImageData(w, h);
    const packed = new Uint32Array(pixels.data.buffer);
    const pack = ([r, g, b], alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
    context.fillStyle = plain;
    const plainRgb = [1, 3, 5].map((k) => parseInt(context.fillStyle.slice(k, k + 2), 16));
    const size = Math.max(1, Math.round((points.length > 20000 ? 1.6 : 2.6) * ratio));
    for (const inside of kept ? [0, 1] : [1]) {
      for (const { i, x, y, rgb } of points) {
        if (kept && kept[i] !== inside) continue;
        const ink = pack(rgb || plainRgb, inside ? 204 : 32);
        const [left, top] = [Math.round(x * ratio - size / 2), Math.round(y * ratio - size / 2)];
        for (let row = top; row < top + size; row++) packed.fill(ink, row * w + left, row * w + left + size);
      }
    }
    const layer = document.createElement("canvas");
    [layer.width, layer.height] = [w, h];
    layer.getContext("2d").putImageData(pixels, 0, 0);
    context.drawImage(layer, 0, 0, width, height);
  }

  function paintKey(context, colour) {
    const key = { left: 438, top: 10, width: 10, height: 42 };
    for (let k = 0; k < key.height; k++) {
      context.fillStyle = `rgb(${report.entropyColour(highest * (1 - k / (key.height - 1)), highest).join(",")})`;
      context.fillRect(key.left, key.top + k, key.width, 1);
    }
    context.fillStyle = colour("--soft");
    context.textAlign = "left";
    context.fillText(highest.toFixed(1), key.left + 15, key.top + 8);
    context.fillText("label", key.left + 15, key.top + 21);
    context.fillText("entropy", key.left + 15, key.top + 32);
    context.fillText("0", key.left + 15, key.top + 44);
  }

  function line(context, xa, ya, xb, yb) {
    context.beginPath();
    context.moveTo(Math.round(xa) + 0.5, Math.round(ya) + 0.5);
    context.lineTo(Math.round(xb) + 0.5, Math.round(yb) + 0.5);
    context.stroke();
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
  }

  function nearest([x, y]) {
    let best = null;
    let least = 64;
    for (const point of points) {
      if (kept && !kept[point.i]) continue;
      const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (distance < least) { least = distance; best = point; }
    }
    return best;
  }

  let start = null;
  canvas.addEventListener("pointerdown", (event) => {
    start = place(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = place(event);
    if (start && Math.hypot(here[0] - start[0], here[1] - start[1]) > 4) {
      brush = { x: Math.min(start[0], here[0]), y: Math.min(start[1], here[1]),
        w: Math.abs(start[0] - here[0]), h: Math.abs(start[1] - here[1]) };
      tip.hidden = true;
      paint();
      return;
    }
    const point = start ? null : nearest(here);
    tip.hidden = !point;
    if (!point) return;
    const box = canvas.getBoundingClientRect();
    const { title } = report.describe(atlas, point.i);
    const small = el("span");
    report.firstImages(atlas, point.i).then(([preview]) => {
      if (preview) small.replaceWith(report.picture(report.pictureFile(atlas, preview[0]), atlas.preview_grid,
        preview[1] ? report.previewShares(preview[1]) : null));
    }).catch(report.fail);
    tip.replaceChildren(small,
      el("span", {}, el("b", {}, `Latent ${id[point.i]}`), el("br"), title, el("br"),
        format.share(frequency[point.i]), entropy[point.i] === null ? "" : ` · entropy ${format.entropy(entropy[point.i])}`));
    tip.style.left = `${Math.min(point.x * box.width / width + 12, box.width - 190)}px`;
    tip.style.top = `${point.y * box.height / height + 12}px`;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("pointerup", (event) => {
    if (brush && start) {
      const inverse = (pixel, low, high, from, to) => 10 ** (low + (pixel - from) / (to - from) * (high - low));
      const clampX = (x) => Math.min(plot.right, Math.max(plot.left, x));
      const clampY = (y) => Math.min(plot.bottom, Math.max(plot.top, y));
      onSelect({
        frequency: [inverse(clampX(brush.x), x0, x1, plot.left, plot.right),
          inverse(clampX(brush.x + brush.w), x0, x1, plot.left, plot.right)],
        mean: [inverse(clampY(brush.y + brush.h), y0, y1, plot.bottom, plot.top),
          inverse(clampY(brush.y), y0, y1, plot.bottom, plot.top)],
      });
    } else if (start) {
      const point = nearest(place(event));
      if (point) onOpen(id[point.i]);
    }
    start = brush = null;
    paint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  paint();
  // Which latents stay bright: a flag for each, or null for all.
  return { keep(flags) { kept = flags; paint(); } };
}
