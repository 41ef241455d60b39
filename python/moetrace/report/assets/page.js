"use strict";
// What a reader can do: theme, sorting, filters, the case explorer, printing.
const Page = (() => {
  const { data, chosen, facts, signed, short } = Look, { map } = Charts, { draw, drawAll } = Draw;
  const root = document.documentElement, byId = (id) => document.getElementById(id);

  function element(name, text = "", className = "") {
    const made = document.createElement(name);
    if (text !== "") made.textContent = text; // never markup
    if (className) made.className = className;
    return made;
  }

  // ---------------------------------------------------------------- theme and print

  function setTheme(theme) {
    root.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", `Switch to the ${theme === "dark" ? "light" : "dark"} theme`);
    byId("theme").setAttribute("aria-pressed", String(theme === "dark"));
  }
  function watchTheme() {
    setTheme(root.dataset.theme);
    byId("theme").addEventListener("click", () => { setTheme(root.dataset.theme === "dark" ? "light" : "dark"); drawAll(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => { setTheme(event.matches ? "dark" : "light"); drawAll(); });
  }
  function watchPrint() {
    let theme = root.dataset.theme, opened = [];
    addEventListener("beforeprint", () => {
      theme = root.dataset.theme;
      setTheme("light");
      opened = [...document.querySelectorAll("#tables details:not([open]), #settings details:not([open])")];
      opened.forEach((details) => { details.open = true; });
      drawAll(660);
    });
    addEventListener("afterprint", () => {
      setTheme(theme);
      opened.forEach((details) => { details.open = false; });
      drawAll();
    });
  }

  // ---------------------------------------------------------------- tables that sort

  const amount = (text) => Number.parseFloat(text.replace(/\u2212/g, "-").replace(/[^0-9.eE+-]/g, ""));
  function compare(numeric, down) {
    return (a, b) => {
      const [x, y] = numeric ? [amount(a.key), amount(b.key)] : [a.key, b.key];
      if (numeric && (Number.isNaN(x) || Number.isNaN(y))) return Number.isNaN(x) - Number.isNaN(y); // dashes last
      const order = numeric ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return (down ? -order : order) || a.place - b.place;
    };
  }
  function sortBy(table, head) {
    const place = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
    table.querySelectorAll("th").forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map((row, old) => ({ row, place: old, key: row.cells[place].textContent.trim() }));
    rows.sort(compare(head.classList.contains("number"), down)).forEach(({ row }) => body.append(row));
  }
  function makeSortable(table) {
    table.querySelectorAll("thead th").forEach((head) => {
      const button = element("button", head.textContent);
      button.type = "button";
      button.addEventListener("click", () => sortBy(table, head));
      head.setAttribute("aria-sort", "none");
      head.replaceChildren(button);
    });
  }

  // ---------------------------------------------------------------- filters

  function fill(select, names) {
    if (!select) return;
    names.forEach((name) => { const option = element("option", name); option.value = name; select.append(option); });
  }
  const different = (names) => [...new Set(names)].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  function watch(id, act) {
    const node = byId(id);
    if (node) node.addEventListener(node.type === "search" ? "input" : "change", () => act(node.value));
  }
  function watchFilters() {
    if (data.layers) fill(byId("layers-relation"), Object.keys(data.layers.groups).filter(Boolean));
    if (data.experts) fill(byId("experts-relation"), different(data.experts.relations));
    if (data.controls) fill(byId("controls-relation"), different(data.controls.relation));
    for (const part of ["layers", "experts", "controls"])
      watch(`${part}-relation`, (relation) => { chosen[part] = relation; draw(`${part}-chart`); });
    watch("experts-order", (order) => { chosen.order = order; draw("experts-chart"); });
  }

  // ---------------------------------------------------------------- one expert

  function offerExperts() {
    const select = byId("one-expert");
    if (!select || !map) return;
    const order = Array.from(map.table.site).sort((a, b) => map.table.mean[map.at.get(b)] - map.table.mean[map.at.get(a)]);
    order.forEach((site) => { const option = element("option", `${map.name(site)}  ${signed(map.table.mean[map.at.get(site)])}`); option.value = site; select.append(option); });
    const star = data.experts.star;
    const site = star ? order.find((own) => map.layer[own] === star[0] && map.expert[own] === star[1]) : undefined;
    chosen.expert = site === undefined ? order[0] : site;
    select.value = chosen.expert;
    select.addEventListener("change", () => { chosen.expert = Number(select.value); draw("expert-chart"); });
  }
  function chooseExpert(site) {
    if (site === undefined || !map.at.has(site) || !byId("one-expert")) return;
    chosen.expert = site;
    byId("one-expert").value = site;
    draw("expert-chart");
    byId("one-expert").scrollIntoView({ block: "center" });
  }

  // ---------------------------------------------------------------- the case explorer

  const cases = (data.explorer || {}).cases || [];
  let shown = [];
  const rescueAt = (fact) => {
    const mean = data.explorer.means[fact.half], place = mean ? mean.layer.indexOf(data.explorer.layer) : -1;
    return fact.rescue && place >= 0 ? fact.rescue[place] : null;
  };
  function listCases() {
    const wanted = byId("find").value.trim().toLowerCase(), relation = byId("explorer-relation").value, order = byId("explorer-order").value;
    const has = (fact) => `${fact.prompt} ${fact.true} ${fact.foil} ${fact.id}`.toLowerCase().includes(wanted);
    shown = cases.map((fact, place) => place).filter((place) => (!relation || cases[place].relation === relation) && has(cases[place]));
    const key = { rescue: (place) => rescueAt(cases[place]), specificity: (place) => cases[place].specificity }[order];
    if (key) shown.sort((a, b) => (key(b) ?? -1e9) - (key(a) ?? -1e9));
    byId("found").textContent = `${shown.length} of ${cases.length} cases`;
    byId("cases-list").replaceChildren(...shown.map(listed));
    mark();
  }
  function listed(place) {
    const fact = cases[place], item = element("div"), at = rescueAt(fact);
    item.id = `case-${fact.id}`;
    item.setAttribute("role", "option");
    item.append(...promptParts(fact));
    const notes = [fact.relation, fact.half, at === null ? "" : `L${data.explorer.layer} ${signed(at, 2)}`];
    item.append(element("small", notes.filter(Boolean).join(" · ")));
    item.addEventListener("click", () => open(place));
    return item;
  }
  function promptParts(fact) {
    const prompt = short(fact.prompt || fact.tokens.join(""), 140);
    const subject = fact.tokens.slice(...fact.span).join("").trim(), at = subject ? prompt.indexOf(subject) : -1;
    if (at < 0) return [document.createTextNode(prompt)];
    return [document.createTextNode(prompt.slice(0, at)), element("mark", subject), document.createTextNode(prompt.slice(at + subject.length))];
  }
  function mark() {
    const list = byId("cases-list"), current = cases[chosen.case];
    for (const item of list.children) item.setAttribute("aria-selected", String(item.id === `case-${current.id}`));
    const own = byId(`case-${current.id}`);
    if (own) list.setAttribute("aria-activedescendant", own.id);
    else list.removeAttribute("aria-activedescendant");
    if (own && (own.offsetTop < list.scrollTop || own.offsetTop + own.offsetHeight > list.scrollTop + list.clientHeight))
      list.scrollTop = own.offsetTop - list.clientHeight / 3;
  }
  function open(place) {
    chosen.case = place;
    const fact = cases[place];
    byId("case-tokens").replaceChildren(...fact.tokens.map((text, at) => {
      const kinds = ["token", at >= fact.span[0] && at < fact.span[1] ? "subject" : "", at === fact.tokens.length - 1 ? "last" : ""];
      return element("span", text, kinds.filter(Boolean).join(" "));
    }));
    const best = (fact.experts || [])[0];
    const told = [
      ["true object", fact.true.trim() || fact.true], ["foil", fact.foil.trim() || fact.foil], ["clean", `${signed(fact.clean)} logits`], ["noised", `${signed(fact.noised)} logits`],
      ["carried most by", best ? `${best[0]} (${signed(best[1])})` : "–"],
      ["relation", fact.relation], ["case", `${fact.id}, ${fact.half}`],
    ];
    if (fact.specificity !== undefined) told.push([`specificity of ${data.explorer.star}`, signed(fact.specificity)]);
    byId("case-facts").replaceChildren(...told.map(([name, value]) => { const pair = element("div"); pair.append(element("dt", name), element("dd", value)); return pair; }));
    expertsOf(fact);
    draw("case-chart");
    mark();
  }
  function expertsOf(fact) {
    const table = byId("case-experts"), rows = fact.experts || [], scope = data.explorer.scope[fact.half] || "";
    table.caption.textContent = rows.length ? `Experts ${scope} with the largest rescue in this case` : "No experts were traced in this case";
    const heads = ["expert", "rescue (logits)", "clean gate weight", "norm of the patch", "direct (logits)"].slice(0, rows.length ? rows[0].length : 4);
    const head = element("tr");
    heads.forEach((name, place) => { const cell = element("th", name, place ? "number" : ""); cell.scope = "col"; head.append(cell); });
    table.tHead.replaceChildren(head);
    table.tBodies[0].replaceChildren(...rows.map((row) => {
      const line = element("tr");
      row.forEach((value, place) => {
        const text = place === 0 ? value : place === 1 || place === 4 ? signed(value) : value === null ? "–" : value.toFixed(3);
        line.append(element("td", text, place ? "number" : ""));
      });
      return line;
    }));
    makeSortable(table);
  }
  function openCase(id) {
    if (!facts.has(id)) return;
    for (const name of ["find", "explorer-relation"]) byId(name).value = "";
    listCases();
    open(facts.get(id).place);
    byId("explorer").scrollIntoView();
  }
  function watchExplorer() {
    const list = byId("cases-list");
    if (!list || !cases.length) return;
    fill(byId("explorer-relation"), different(cases.map((fact) => fact.relation)));
    for (const id of ["find", "explorer-relation", "explorer-order"]) watch(id, listCases);
    list.addEventListener("keydown", (event) => {
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity };
      if (!(event.key in steps) || !shown.length) return;
      const to = Math.min(shown.length - 1, Math.max(0, shown.indexOf(chosen.case) + steps[event.key]));
      open(shown[to]);
      event.preventDefault();
    });
    listCases();
    open(0);
  }

  // ---------------------------------------------------------------- where the reader is

  function watchSections() {
    const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
    const seen = new IntersectionObserver((entries) => {
      const top = entries.filter((entry) => entry.isIntersecting)[0];
      if (!top) return;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(top.target.id).setAttribute("aria-current", "true");
    }, { rootMargin: "-15% 0px -75% 0px" });
    document.querySelectorAll("main > section").forEach((section) => seen.observe(section));
  }

  const page = { chooseExpert, openCase, async start() {
    await Draw.load().catch(Draw.giveUp);
    document.querySelectorAll("table.sortable").forEach((table) => { if (table.id !== "case-experts") makeSortable(table); });
    watchTheme(); watchFilters(); offerExperts(); drawAllButOne(); watchExplorer(); watchPrint(); watchSections();
    root.dataset.ready = "true";
  } };
  const drawAllButOne = () => ["layers", "experts", "expert", "controls", "matched", "coalitions", "shares", "checks", "paper"].forEach((name) => draw(`${name}-chart`));
  return page;
})();
Page.start();
