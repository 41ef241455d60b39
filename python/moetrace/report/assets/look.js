"use strict";
// What charts share: the page's data, what is chosen, words for numbers, colours, axes and marks.
const Look = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const chosen = { layers: "", experts: "", controls: "", order: "number", expert: null, case: 0 };

  // plotly reads a little markup in labels and hovers: what comes from data must not be taken for it.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, most = 90) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
  const minus = (text) => text.replace(/-/g, "\u2212");
  const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);
  const signed = (value, digits = 3) =>
    known(value) ? minus((value >= 0 ? "+" : "") + value.toFixed(digits)) : "–";
  const range = (low, high) =>
    known(low) ? `${data.level} interval ${signed(low)} to ${signed(high)}` : "no interval (too few cases)";
  const tested = (p, name = "adjusted p") => (known(p) ? `${name} ${p.toPrecision(2)}` : "no test (too few cases)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const fade = (hex, alpha) => hex + Math.round(255 * alpha).toString(16).padStart(2, "0");

  const KINDS = { f4: Float32Array, u2: Uint16Array, u4: Uint32Array };
  function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed.base64), (mark) => mark.charCodeAt(0));
    return new KINDS[packed.dtype](bytes.buffer);
  }

  const facts = new Map(((data.explorer || {}).cases || []).map((fact, place) => [fact.id, { ...fact, place }]));
  function fact(id, more) {
    const known = facts.get(id);
    const lines = known ? [short(known.prompt), `${known.true.trim()} rather than ${known.foil.trim()}`] : [];
    return [...lines, ...more, `case ${id}`];
  }
  const hover = (lines) => lines.map((line) => plain(line)).join("<br>");

  // ---------------------------------------------------------------- what charts share

  function axis(title, more = {}) {
    return {
      title: { text: title, standoff: 10, font: { size: 13 } }, gridcolor: color("grid"), zeroline: false,
      linecolor: color("line"), tickcolor: color("line"), automargin: true, fixedrange: false, ...more,
    };
  }
  const logits = (title, more = {}) =>
    axis(title, { zeroline: true, zerolinecolor: color("grey"), zerolinewidth: 1, ...more });

  function layout(xaxis, yaxis, more = {}) {
    return {
      height: 400, margin: { l: 56, r: 20, t: 44, b: 52 }, xaxis, yaxis,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("text") },
      hoverlabel: {
        bgcolor: color("surface"), bordercolor: color("grey"), align: "left",
        font: { color: color("text"), size: 13, family: getComputedStyle(document.body).fontFamily },
      },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", xanchor: "left", font: { size: 12 } },
      hovermode: "closest", dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false, ...more,
    };
  }

  function band(x, low, high, hue, name) {
    const at = x.map((_, place) => place).filter((place) => known(low[place]));
    return {
      x: [...at.map((place) => x[place]), ...at.map((place) => x[place]).reverse()],
      y: [...at.map((place) => low[place]), ...at.map((place) => high[place]).reverse()],
      fill: "toself", fillcolor: fade(hue, 0.16), line: { width: 0 }, mode: "lines", hoverinfo: "skip", name,
    };
  }
  const bars = (mean, low, high, hue) => ({
    type: "data", symmetric: false, color: hue, thickness: 1.3, width: 0,
    array: mean.map((value, place) => (known(high[place]) ? high[place] - value : 0)),
    arrayminus: mean.map((value, place) => (known(low[place]) ? value - low[place] : 0)),
  });
  // Filled where the corrected test is below 0.05, as in the package's pictures.
  const marks = (p, hue, size = 8) => ({
    size, color: p.map((value) => (known(value) && value < 0.05 ? hue : color("surface"))), line: { color: hue, width: 1.6 },
  });
  const strip = (floor) => ({
    type: "rect", xref: "paper", x0: 0, x1: 1, y0: -floor, y1: floor, line: { width: 0 },
    fillcolor: fade(color("grey"), 0.3), layer: "below",
  });
  const points = (lines, more) => ({
    type: "scatter", mode: "markers", hovertemplate: "%{text}<extra></extra>", text: lines.map(hover), meta: lines, ...more,
  });

  return {
    data, chosen, plain, short, known, signed, range, tested, color, fade, unpack, facts, fact, hover, axis, logits, layout, band,
    bars, marks, strip, points,
  };
})();
