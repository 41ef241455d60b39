"use strict";
// Every chart: from the data and what is chosen to traces and a layout. `main` is the trace that the keyboard steps
// through, `meta` of a trace the lines that are said of its points, `open` what a click on one does.
const Charts = (() => {
  const {
    data, chosen, plain, short, known, signed, range, tested, color, fade, unpack, fact, hover, axis, logits, layout, band, bars,
    marks, strip, points,
  } = Look;

  function layers() {
    const own = data.layers, group = own.groups[chosen.layers] || own.groups[""], blue = color("blue");
    const lines = group.layer.map((layer, place) => [
      `Layer ${layer}: ${signed(group.mean[place])} logits`, range(group.low[place], group.high[place]),
      tested(group.p[place]), `${group.n} ${own.half} cases`,
    ]);
    const traces = [
      band(group.layer, group.low, group.high, blue, `${data.level} interval`),
      points(lines, {
        mode: "lines+markers", x: group.layer, y: group.mean, line: { color: blue, width: 2 },
        marker: marks(group.p, blue), name: `mean of ${group.n} ${own.half} cases`,
      }),
    ];
    if (own.discovery && !chosen.layers)
      traces.push({
        x: own.discovery.layer, y: own.discovery.mean, mode: "lines", line: { color: color("grey"), width: 1.5, dash: "dot" },
        name: `mean of ${own.discovery.n} discovery cases`, hovertemplate: "discovery, layer %{x}: %{y:+.3f} logits<extra></extra>",
      });
    if (own.direct && !chosen.layers)
      traces.push({
        x: group.layer, y: own.direct, mode: "lines", line: { color: color("red"), width: 1.5, dash: "dash" },
        name: "direct part", hovertemplate: "direct, layer %{x}: %{y:+.3f} logits<extra></extra>",
      });
    const place = group.layer.indexOf(own.selected);
    const notes = place < 0 ? [] : [{
      x: own.selected, y: known(group.high[place]) ? group.high[place] : group.mean[place], text: `<b>L${own.selected}</b> selected`,
      showarrow: false, yshift: 13, font: { color: blue },
    }];
    const more = { shapes: [strip(own.floor)], annotations: notes };
    const ticks = group.layer.length < 16 ? { dtick: 1 } : {};
    return { traces, layout: layout(axis("layer", ticks), logits("mean rescue (logits)"), more), main: 1 };
  }

  // The map's arrays, unpacked once; means of one relation are taken from single cases.
  const map = data.experts && (() => {
    const own = data.experts, names = ["mean", "low", "high", "p", "site", "active"];
    const table = Object.fromEntries(names.map((name) => [name, unpack(own[name])]));
    const layer = unpack(own.sites.layer), expert = unpack(own.sites.expert);
    const at = new Map(Array.from(table.site, (site, row) => [site, row]));
    const single = own.single && {
      perCase: unpack(own.single.per_case), site: unpack(own.single.site), rescue: unpack(own.single.rescue),
    };
    const name = (site) => `L${String(layer[site]).padStart(2, "0")}E${String(expert[site]).padStart(3, "0")}`;
    return { table, layer, expert, at, single, name, layers: [...new Set(layer)], width: Math.max(...expert) + 1 };
  })();

  function eachSingle(visit) {
    let place = 0;
    data.experts.cases.forEach((id, row) => {
      for (let k = 0; k < map.single.perCase[row]; k++, place++) visit(row, map.single.site[place], map.single.rescue[place]);
    });
  }
  function meansOf(relation) {
    const sum = new Float64Array(map.layer.length), active = new Uint32Array(map.layer.length);
    const inside = data.experts.relations.map((own) => own === relation), n = inside.filter(Boolean).length;
    eachSingle((row, site, rescue) => {
      if (inside[row]) { sum[site] += rescue; active[site] += 1; }
    });
    return { n, of: (site) => (active[site] ? { mean: sum[site] / n, active: active[site] } : null) };
  }
  function means() {
    if (chosen.experts) return meansOf(chosen.experts);
    const { table, at } = map;
    const of = (site) => {
      const row = at.get(site);
      if (row === undefined) return null;
      return { mean: table.mean[row], low: table.low[row], high: table.high[row], p: table.p[row], active: table.active[row] };
    };
    return { n: data.experts.cases.length, of };
  }

  function experts() {
    const own = data.experts, found = means(), columns = map.layers.map(() => []);
    const column = new Map(map.layers.map((layer, place) => [layer, place]));
    map.layer.forEach((layer, site) => columns[column.get(layer)].push(site));
    const byRescue = chosen.order === "rescue";
    if (byRescue)
      columns.forEach((sites) => sites.sort((a, b) => ((found.of(b) || {}).mean ?? -1e9) - ((found.of(a) || {}).mean ?? -1e9)));
    const rows = Array.from({ length: map.width }, (_, row) => row);
    const site = rows.map((row) => columns.map((sites) => (byRescue ? sites[row] : sites.find((s) => map.expert[s] === row))));
    const lines = site.map((line) => line.map((s) => {
      const cell = s === undefined ? null : found.of(s);
      if (s === undefined) return [""];
      if (!cell) return [map.name(s), "never clean-active"];
      const test = chosen.experts ? ["one relation: no test"] : [range(cell.low, cell.high), tested(cell.p)];
      return [`${map.name(s)}: ${signed(cell.mean)} logits`, ...test, `clean-active in ${cell.active} of ${found.n} cases`];
    }));
    // Colour goes with the square root: one strong expert among thousands would leave the others blank.
    const root = (value) => Math.sign(value) * Math.sqrt(Math.abs(value));
    const z = site.map((line) => line.map((s) => { const cell = s === undefined ? null : found.of(s); return cell && root(cell.mean); }));
    const most = Math.max(1e-9, z.flat().reduce((top, value) => Math.max(top, value * value), 0));
    const shown = [-1, -0.5, -0.1, 0, 0.1, 0.5, 1].map((share) => share * most);
    const levels = { tickvals: shown.map(root), ticktext: shown.map((value) => (value ? signed(value, most < 0.05 ? 4 : 2) : "0")) };
    const gap = map.width > 32 ? 0 : 1;
    const [red, blue, middle] = ["red", "blue", "ground"].map(color);
    const where = new Map(site.flatMap((line, row) => line.map((s, place) => [s, [map.layers[place], row]])));
    const kept = chosen.experts ? [] : Array.from(map.table.site).filter((s, row) => map.table.p[row] < 0.05);
    const traces = [
      {
        type: "heatmap", x: map.layers, y: rows, z, text: lines.map((line) => line.map(hover)), meta: lines,
        xgap: gap, ygap: gap, hovertemplate: "%{text}<extra></extra>", hoverongaps: true, zmin: -root(most), zmax: root(most), sites: site,
        colorscale: [[0, red], [0.4, mix(red, middle, 0.4)], [0.5, mix(color("grey"), middle, 0.22)], [0.6, mix(blue, middle, 0.4)], [1, blue]],
        colorbar: { title: { text: "mean rescue (logits)", side: "right", font: { size: 12 } }, thickness: 10, len: 0.9, outlinewidth: 0, tickfont: { size: 11 }, ...levels },
      },
      {
        type: "scatter", mode: "markers", x: kept.map((s) => where.get(s)[0]), y: kept.map((s) => where.get(s)[1]), hoverinfo: "skip",
        marker: { size: 5, color: color("text"), line: { color: color("surface"), width: 1 } }, name: "survives the correction",
        visible: kept.length ? true : "legendonly", showlegend: !chosen.experts,
      },
    ];
    const star = own.star && map.layer.findIndex((layer, s) => layer === own.star[0] && map.expert[s] === own.star[1]);
    if (own.star && star >= 0)
      traces.push({
        type: "scatter", mode: "markers", x: [where.get(star)[0]], y: [where.get(star)[1]], hoverinfo: "skip",
        marker: { size: 15, symbol: "circle-open", color: color("text"), line: { width: 2 } }, name: `${map.name(star)}, selected`,
      });
    const height = Math.min(760, Math.max(340, 120 + 5 * map.width));
    const title = byRescue ? "rank within the layer" : "expert";
    const last = map.width - 0.5, ends = [Math.min(...map.layers) - 0.5, Math.max(...map.layers) + 0.5];
    const x = axis("layer", { showgrid: false, range: ends, dtick: map.layers.length < 16 ? 1 : undefined });
    const y = axis(title, { showgrid: false, range: byRescue ? [last, -0.5] : [-0.5, last], dtick: map.width < 20 ? 1 : undefined });
    return { traces, layout: layout(x, y, { height, showlegend: true }), main: 0, open: (point) => Page.chooseExpert(point.site) };
  }
  function mix(hex, other, share) {
    const part = (text, place) => parseInt(text.slice(1 + 2 * place, 3 + 2 * place), 16);
    const level = (place) => Math.round(share * part(hex, place) + (1 - share) * part(other, place));
    return "#" + [0, 1, 2].map((place) => level(place).toString(16).padStart(2, "0")).join("");
  }

  function expert() {
    const found = [];
    eachSingle((row, site, rescue) => {
      if (site === chosen.expert) found.push({ id: data.experts.cases[row], relation: data.experts.relations[row], rescue });
    });
    found.sort((a, b) => b.rescue - a.rescue);
    const lines = found.map((own) => fact(own.id, [`${map.name(chosen.expert)}: ${signed(own.rescue)} logits`, own.relation]));
    const blue = color("blue"), red = color("red");
    const traces = [points(lines, {
      type: "bar", textposition: "none", x: found.map((_, place) => place + 1), y: found.map((own) => own.rescue), ids: found.map((own) => own.id),
      marker: { color: found.map((own) => (own.rescue < 0 ? red : blue)), opacity: 0.85 },
    })];
    const x = axis(`its ${found.length} active cases, sorted`, { showgrid: false, range: [0.3, Math.max(found.length, 12) + 0.7], tickformat: "d", dtick: found.length < 16 ? 1 : undefined });
    const more = { height: 300, showlegend: false, shapes: [strip(data.experts.floor)], margin: { l: 56, r: 20, t: 20, b: 52 }, bargap: 0.35 };
    return { traces, layout: layout(x, logits("rescue (logits)"), more), main: 0, open: (point) => Page.openCase(point.id) };
  }

  function controls() {
    const own = data.controls, blue = color("blue"), grey = color("grey");
    const order = own.case.map((_, place) => place).filter((place) => !chosen.controls || own.relation[place] === chosen.controls);
    order.sort((a, b) => own.rescue[b] - own.control[b] - (own.rescue[a] - own.control[a]));
    const pick = (values) => order.map((place) => values[place]);
    const x = order.map((_, place) => place + 1), ids = pick(own.case);
    const lines = order.map((place) => fact(own.case[place], [
      `${own.star}: ${signed(own.rescue[place])} logits${own.active[place] ? "" : " (not clean-active)"}`,
      `controls: ${signed(own.control[place])}, difference ${signed(own.rescue[place] - own.control[place])}`, own.relation[place],
    ]));
    const links = { x: [], y: [] };
    order.forEach((place, rank) => {
      links.x.push(rank + 1, rank + 1, null);
      links.y.push(own.control[place], own.rescue[place], null);
    });
    const traces = [
      { ...links, mode: "lines", line: { color: color("bar"), width: 1.2 }, hoverinfo: "skip", showlegend: false },
      points(lines, { x, y: pick(own.control), ids, marker: { size: 6, color: grey }, name: "controls, mean" }),
      points(lines, {
        x, y: pick(own.rescue), ids, name: own.star,
        marker: { size: 7.5, color: pick(own.active).map((active) => (active ? blue : color("surface"))), line: { color: blue, width: 1.5 } },
      }),
    ];
    const axes = [axis(`${order.length} cases, sorted by the difference`, { showgrid: false }), logits("rescue (logits)")];
    return { traces, layout: layout(...axes), main: 2, open: (point) => Page.openCase(point.id) };
  }

  function matched() {
    const own = data.controls.matched, hues = [color("blue"), color("grey")], shift = [-0.1, 0.1];
    const names = { raw: "raw patch vectors", equal_norm: "at equal norm" };
    const traces = Object.entries(own).map(([scaling, table], place) => points(
      table.quantity.map((quantity, row) => [`${quantity}, ${names[scaling] || scaling}`, `${signed(table.mean[row])} logits`, range(table.low[row], table.high[row])]),
      {
        x: table.quantity.map((_, row) => row + shift[place % 2]), y: table.mean, name: names[scaling] || scaling,
        error_y: bars(table.mean, table.low, table.high, hues[place % 2]), marker: { size: 9, color: hues[place % 2] },
      }));
    const labels = Object.values(own)[0].quantity.map((name) => ({ selected: data.controls.star, matched: "matched control", specificity: "difference" })[name] || name);
    const x = axis("", { tickvals: labels.map((_, row) => row), ticktext: labels.map(plain), range: [-0.6, labels.length - 0.4], showgrid: false });
    return { traces, layout: layout(x, logits("mean rescue (logits)"), { height: 340 }), main: 0 };
  }

  function coalitions() {
    const own = data.coalitions, blue = color("blue");
    const lines = own.name.map((name, place) => [name, `${signed(own.mean[place])} logits`, range(own.low[place], own.high[place])]);
    if (!own.size) {
      const x = axis("", { tickvals: own.name.map((_, place) => place), ticktext: own.name.map((name) => plain(short(name, 24))), showgrid: false, range: [-0.6, own.name.length - 0.4] });
      const dots = points(lines, { x: own.name.map((_, place) => place), y: own.mean, error_y: bars(own.mean, own.low, own.high, blue), marker: { size: 9, color: blue } });
      return { traces: [dots], layout: layout(x, logits("mean rescue (logits)"), { shapes: [strip(own.floor)], showlegend: false }), main: 0 };
    }
    const beside = spread(own.size);
    const traces = [
      points(lines, {
        x: own.size.map((size, place) => size + beside[place]), y: own.mean, name: "one coalition, mean over cases",
        marker: { size: 7, color: fade(color("grey"), 0.75) },
      }),
      points(own.line.size.map((size, place) => [`${size} experts: ${signed(own.line.mean[place])} logits`, range(own.line.low[place], own.line.high[place])]), {
        x: own.line.size, y: own.line.mean, mode: "lines+markers", line: { color: blue, width: 2 }, name: `mean of a size, ${data.level} interval`,
        marker: { size: 8, color: blue }, error_y: bars(own.line.mean, own.line.low, own.line.high, blue),
      }),
    ];
    (own.named || []).forEach((set, place) => traces.push({
      x: [0.6, Math.max(...own.size) + 0.4], y: [set.mean, set.mean], mode: "lines", name: `${set.name} ${signed(set.mean)}`, hoverinfo: "skip",
      line: { color: color(place ? "red" : "text"), width: 1.4, dash: place ? "dot" : "dash" },
    }));
    const x = axis("experts in the coalition", { dtick: 1, showgrid: false });
    return { traces, layout: layout(x, logits("mean rescue (logits)"), { shapes: [strip(own.floor)] }), main: 0 };
  }
  // Dots of one size stand beside each other, so that none hides another.
  function spread(sizes) {
    const count = new Map(), seen = new Map();
    sizes.forEach((size) => count.set(size, (count.get(size) || 0) + 1));
    return sizes.map((size) => {
      const place = seen.get(size) || 0, n = count.get(size);
      seen.set(size, place + 1);
      return n === 1 ? 0 : 0.34 * (place / (n - 1) - 0.5);
    });
  }

  function shares() {
    const own = data.coalitions.shares, blue = color("blue"), red = color("red"), last = own.expert.length - 1;
    const flip = (values) => values.slice().reverse();
    const lines = flip(own.expert.map((name, place) => [
      `${name}: ${signed(own.mean[place])} logits`, range(own.low[place], own.high[place]), tested(own.p[place]),
      `routed in ${own.active[place]} of ${own.n} cases`,
    ]));
    const hue = own.mean.map((mean) => (mean < 0 ? red : blue));
    const fill = own.p.map((p, place) => (known(p) && p < 0.05 ? hue[place] : fade(hue[place], 0.18)));
    const traces = [points(lines, {
      type: "bar", textposition: "none", orientation: "h", y: flip(own.expert), x: flip(own.mean),
      marker: { color: flip(fill), line: { color: flip(hue), width: 1 } },
      error_x: bars(flip(own.mean), flip(own.low), flip(own.high), color("text")),
    })];
    const more = { height: 120 + 24 * (last + 1), showlegend: false, margin: { l: 70, r: 20, t: 16, b: 52 }, bargap: 0.35 };
    return { traces, layout: layout(logits("mean Shapley value (logits)"), axis("", { showgrid: false }), more), main: 0 };
  }

  function checks() {
    const own = data.checks;
    const traces = [["expert", own.star, color("blue")], ["block", "its whole block", color("grey")]].flatMap(([patch, name, hue]) => {
      const table = own[patch];
      const lines = table.scale.map((scale, place) => [
        `${name}, scale ${scale}: ${signed(table.mean[place])} logits`, range(table.low[place], table.high[place]), `mean drop ${signed(table.drop[place])} logits`,
      ]);
      return [
        { ...band(table.scale, table.low, table.high, hue, ""), showlegend: false },
        points(lines, { x: table.scale, y: table.mean, mode: "lines+markers", line: { color: hue, width: 2 }, marker: { size: 8, color: hue }, name }),
      ];
    });
    const x = axis("noise scale (standard deviations of the embedding)");
    return { traces, layout: layout(x, logits("mean rescue (logits)"), { height: 360, shapes: [strip(own.floor)] }), main: 1 };
  }

  function oneCase() {
    const own = data.explorer, fact = own.cases[chosen.case], mean = own.means[fact.half] || Object.values(own.means)[0];
    if (!fact.rescue || !mean) return { traces: [], layout: layout(axis("layer"), logits("rescue (logits)")), main: 0 };
    const blue = color("blue"), lines = mean.layer.map((layer, place) => [`Layer ${layer}: ${signed(fact.rescue[place])} logits`, `mean of its half ${signed(mean.mean[place])}`]);
    const traces = [
      { x: mean.layer, y: mean.mean, mode: "lines", line: { color: color("grey"), width: 1.5, dash: "dot" }, name: `mean of the ${fact.half} cases`, hoverinfo: "skip" },
      points(lines, { x: mean.layer, y: fact.rescue, mode: "lines+markers", line: { color: blue, width: 2 }, marker: { size: 6, color: blue }, name: "this case" }),
    ];
    const more = { height: 300, shapes: [strip(mean.floor)] };
    return { traces, layout: layout(axis("layer", mean.layer.length < 16 ? { dtick: 1 } : {}), logits("rescue (logits)"), more), main: 1 };
  }

  function paper() {
    const own = data.paper, blue = color("blue"), grey = color("grey");
    const rows = own.name.map((_, place) => own.name.length - 1 - place);
    const filled = own.covers.map((covers) => (covers ? blue : color("surface"))), all = own.name.map(() => grey);
    const one = (side, hue, fill, name, shift) => points(
      own.name.map((quantity, place) => [`${quantity}, ${name}: ${signed(own[side][place])}`, `interval ${signed(own[`${side}_low`][place])} to ${signed(own[`${side}_high`][place])}`]),
      {
        x: own[side], y: rows.map((row) => row + shift), name, marker: { size: 9, color: fill, line: { color: hue, width: 1.6 } },
        error_x: bars(own[side], own[`${side}_low`], own[`${side}_high`], hue),
      });
    const traces = [one("run", blue, filled, "this run", 0.13), one("printed", grey, all, "the paper", -0.13)];
    const y = axis("", { tickvals: rows, ticktext: own.name.map((name) => plain(short(name, innerWidth < 640 ? 20 : 48))), showgrid: false });
    return { traces, layout: layout(logits("logits (Table 7: ratios)"), y, { height: 140 + 34 * rows.length }), main: 0 };
  }

  const all = {
    "layers-chart": layers, "experts-chart": experts, "expert-chart": expert, "controls-chart": controls, "matched-chart": matched,
    "coalitions-chart": coalitions, "shares-chart": shares, "checks-chart": checks, "case-chart": oneCase, "paper-chart": paper,
  };

  return { all, map };
})();
