"use strict";
// Draws the charts, and lets the keyboard step through their points.
const Draw = (() => {
  const { chosen } = Look, { all } = Charts, drawn = {};
  const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  function draw(id, width) {
    const node = document.getElementById(id);
    if (!node || !all[id] || typeof Plotly === "undefined") return;
    const made = all[id](), fresh = !drawn[id];
    const narrow = (width || node.clientWidth) < 520;
    if (narrow) { made.layout.margin = { ...made.layout.margin, l: 44, r: 12 }; }
    if (width) made.layout.width = width;
    drawn[id] = made;
    node.style.minHeight = `${made.layout.height}px`;
    Plotly.react(node, made.traces, made.layout, config);
    if (!fresh) return;
    let at = -1;
    node.on("plotly_click", (event) => { if (drawn[id].open) drawn[id].open(meaning(id, event.points[0])); });
    node.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
      if (event.key in steps) { at = step(id, at, event.key, steps[event.key]); event.preventDefault(); }
      if (event.key === "Enter" && at >= 0 && drawn[id].open) drawn[id].open(meaning(id, pointAt(id, at)));
      if (event.key === "Escape") { at = -1; say(id, []); Plotly.Fx.unhover(node); }
    });
    node.addEventListener("blur", () => say(id, []));
  }
  const say = (id, lines) => { document.getElementById(`${id}-readout`).textContent = lines.join("\n"); };
  const mainTrace = (id) => drawn[id].traces[drawn[id].main];
  const isMap = (id) => mainTrace(id).type === "heatmap";
  function pointAt(id, at) {
    const width = isMap(id) ? mainTrace(id).x.length : 1;
    return { curveNumber: drawn[id].main, pointNumber: isMap(id) ? [Math.floor(at / width), at % width] : at };
  }
  function meaning(id, point) {
    const trace = drawn[id].traces[point.curveNumber];
    if (trace.type === "heatmap") return { site: trace.sites[point.pointNumber[0]][point.pointNumber[1]] };
    return { id: (trace.ids || [])[point.pointNumber] };
  }
  function step(id, at, key, by) {
    const trace = mainTrace(id);
    if (!trace || !trace.meta) return at;
    const width = isMap(id) ? trace.x.length : 1, count = isMap(id) ? width * trace.y.length : trace.meta.length;
    const upward = isMap(id) && key.startsWith("Arrow") && /Up|Down/.test(key) ? width * (chosen.order === "rescue" ? 1 : -1) : 1;
    const to = at < 0 ? (by === Infinity ? count - 1 : 0) : Math.min(count - 1, Math.max(0, at + by * upward));
    const point = pointAt(id, to), lines = isMap(id) ? trace.meta[point.pointNumber[0]][point.pointNumber[1]] : trace.meta[to];
    say(id, lines);
    const node = document.getElementById(id);
    if (isMap(id)) Plotly.Fx.hover(node, { xval: trace.x[point.pointNumber[1]], yval: trace.y[point.pointNumber[0]] });
    else Plotly.Fx.hover(node, [{ curveNumber: point.curveNumber, pointNumber: to }]);
    return to;
  }
  const drawAll = (width) => Object.keys(all).forEach((id) => draw(id, width));

  // plotly.js is in the page as base64 of its gzip; as a script element it is the text that the policy lets run.
  async function load() {
    const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (mark) => mark.charCodeAt(0));
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(unpacked).text();
    document.head.append(script);
  }
  function giveUp() {
    document.querySelectorAll(".chart").forEach((node) => {
      node.textContent = "This browser can't unpack the charts; the tables below hold their numbers.";
      node.classList.add("undrawn");
    });
  }

  return { draw, drawAll, load, giveUp };
})();
