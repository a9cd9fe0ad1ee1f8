"use strict";
// A picture whose patches can be chosen: by a click, or by arrow keys while it has the focus.
// `choose` is told the patch, or null for the whole image; the result marks one.
function openPatches(picture, [nRows, nColumns], describedBy, choose) {
  const cells = report.el("canvas", { class: "cells" });
  let patch = null;
  picture.append(cells);
  for (const [name, value] of Object.entries({ tabindex: 0, role: "application", "aria-describedby": describedBy,
    "aria-label": `${nRows} rows and ${nColumns} columns of patches` })) picture.setAttribute(name, value);

  function paint() {
    const box = picture.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    cells.width = Math.max(1, box.width * ratio);
    cells.height = Math.max(1, box.height * ratio);
    if (patch === null) return;
    const context = cells.getContext("2d");
    const [w, h] = [cells.width / nColumns, cells.height / nRows];
    const [row, column] = [Math.floor(patch / nColumns), patch % nColumns];
    context.lineWidth = 4 * ratio;
    context.strokeStyle = "rgb(0 0 0 / .65)";
    context.strokeRect(column * w, row * h, w, h);
    context.lineWidth = 2 * ratio;
    context.strokeStyle = "#fff";
    context.strokeRect(column * w, row * h, w, h);
  }

  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    const column = Math.min(nColumns - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * nColumns)));
    const row = Math.min(nRows - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * nRows)));
    choose(patch === row * nColumns + column ? null : row * nColumns + column);
  });
  picture.addEventListener("keydown", (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey) return;
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [];
    if (event.key === "Escape") choose(null);
    else if (down === undefined) return;
    else if (patch === null) choose(Math.floor(nRows / 2) * nColumns + Math.floor(nColumns / 2));
    else {
      const row = Math.min(nRows - 1, Math.max(0, Math.floor(patch / nColumns) + down));
      const column = Math.min(nColumns - 1, Math.max(0, patch % nColumns + right));
      choose(row * nColumns + column);
    }
    event.preventDefault();
  });
  new ResizeObserver(paint).observe(picture);
  return { mark(next) { patch = next; paint(); } };
}

// A patch as addresses and headings have it: row and column, counted from 1.
function patchAt(text, [nRows, nColumns]) {
  const [row, column] = (text || "").split(",").map(Number);
  return row >= 1 && row <= nRows && column >= 1 && column <= nColumns && Number.isInteger(row) && Number.isInteger(column)
    ? (row - 1) * nColumns + column - 1 : null;
}

function placeOf(patch, [, nColumns]) {
  return patch === null ? null : `${Math.floor(patch / nColumns) + 1},${patch % nColumns + 1}`;
}
