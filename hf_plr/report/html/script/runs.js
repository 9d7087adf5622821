const FEW_LIVES = 16; // clusters that are drawn before all are asked for
const LIFE = 24, HALF = 8; // height of a row, and half of the widest band
const rateInWords = ({ rate, low, high, wrong, marked }) => `${share(rate)} of the labels are wrong, 95% interval ${share(low)} to ${share(high)} (${count(wrong)} of ${count(marked)} marked ${run.plural})`;

// The history over runs: each was continued from the one before, and numbers are the same clusters in all of them.
function runs() {
  const history = data.history;
  if (!history || history.runs.length < 2) return;
  const all = history.runs;
  const older = history.left_out ? ` ${plural(history.left_out, "older run")} not shown.` : "";
  const drawings = []; // they need the width of the page, and so to be on it
  section("runs", "Runs", `This run continues ${all.length === 2 ? "another one" : `a line of ${count(all.length - 1)} others`}: a number is the same ${clusterWord} in all of them.${older}`,
    runTable(all), errorRates(history, drawings), el("h3", {}, `Lives of the ${clusterWord}s`), lives(history, drawings), el("h3", {}, "What changed from run to run"), changes(all));
  drawings.forEach(onResize);
}

function runTable(all) {
  const audited = all.some((each) => each.audit);
  const kinds = KINDS.filter((kind) => all.some((each) => each.counts && each.counts[kind]));
  const heads = ["run", "ended", run.plural, "new", "gone", `${clusterWord}s`, ...kinds, "in none", ...(audited ? ["wrong (95%)"] : [])];
  const number = (of) => (of === null || of === undefined ? "-" : count(of));
  const rows = all.map((each) => [
    each.name, each.written, count(each.samples), number(each.data && each.data[1]), number(each.data && each.data[2]), count(each.clusters),
    ...kinds.map((kind) => number(each.counts && each.counts[kind])), each.samples ? share(each.noise / each.samples) : "-",
    ...(audited ? [each.audit ? `${share(each.audit.rate)} (${share(each.audit.low)} to ${share(each.audit.high)})` : "-"] : []),
  ]);
  return table(heads, rows, { label: "Runs", class: "runs" });
}

function errorRates({ runs: all, change }, drawings) {
  if (!all.some((each) => each.audit)) {
    return el("p", { class: "soft" }, "No run has been audited: hf-plr audit notes its error rate here, and compares it with that of the run before.");
  }
  const lines = all.filter((each) => each.audit).slice(-1).map((each) => `${each.name}: ${rateInWords(each.audit)}.`);
  if (change) {
    const points = (number) => `${number > 0 ? "+" : number < 0 ? "\u2212" : ""}${Math.abs(100 * number).toFixed(1)}`;
    const verdict = change.low > 0 ? "more are wrong now" : change.high < 0 ? "fewer are wrong now" : "no change can be told";
    lines.push(`Against ${change.since}: ${points(change.difference)} points, 95% interval ${points(change.low)} to ${points(change.high)}: ${verdict}.`);
  }
  const holder = el("div", {});
  drawings.push(() => {
    const width = holder.clientWidth || 700, height = 118, top = 10, bottom = 22, { x, narrow } = columns(width, all.length);
    const largest = Math.max(0.02, ...all.map((each) => (each.audit ? each.audit.high : 0)));
    const y = (rate) => top + (1 - rate / largest) * (height - top - bottom);
    const dots = all.flatMap((each, i) => (each.audit ? [
      svg("line", { class: "whisker", x1: x(i), x2: x(i), y1: y(each.audit.low), y2: y(each.audit.high) }),
      svg("circle", { class: "dot", cx: x(i), cy: y(each.audit.rate), r: 4.5 }, svg("title", {}, `${each.name}: ${rateInWords(each.audit)}`)),
    ] : []));
    const grid = [0, largest / 2, largest].map((rate) => [svg("line", { class: "grid", x1: x(0) - 12, x2: x(all.length - 1) + 12, y1: y(rate), y2: y(rate) }),
      svg("text", { x: x(0) - 18, y: y(rate) + 4, "text-anchor": "end" }, share(rate))]);
    holder.replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Share of wrong labels by run; the table above has its values" },
      grid, dots, runNames(all, x, height - 5, narrow, width)));
  });
  return [el("h3", {}, "Wrong labels by run"), holder, lines.map((line) => el("p", { class: "soft" }, line))];
}

// Places of the runs from left to right: the same for error rates and lives.
function columns(width, n) {
  const narrow = width < 560;
  const left = narrow ? 112 : 190, right = narrow ? 48 : 84;
  return { narrow, left, x: (i) => left + (n > 1 ? i / (n - 1) : 0.5) * (width - left - right) };
}

function runNames(all, x, y, narrow, width) {
  const room = x(1) - x(0) - 6;
  const every = Math.max(1, Math.ceil((narrow ? 42 : 26) / (x(1) - x(0))));
  return all.map((each, i) => ((all.length - 1 - i) % every ? null : svg("text", { x: x(i), y, "text-anchor": "middle" },
    svg("title", {}, each.name), fitted(each.name, Math.min(room * every, 2 * Math.min(x(i), width - x(i)) - 4), "", 11))));
}

function lives(history, drawings) {
  const all = history.runs;
  const last = all.length - 1;
  const partOf = (sizes, i) => sizes[i] / Math.max(all[i].samples, 1);
  const end = (sizes) => sizes.reduce((latest, size, i) => (size ? i : latest), 0);
  const sorted = [...history.clusters].sort(([a, p], [b, q]) => end(q) - end(p) || partOf(q, end(q)) - partOf(p, end(p)) || a - b);
  const widest = Math.max(...sorted.flatMap(([, sizes]) => sizes.map((_, i) => partOf(sizes, i))), 1e-9);
  const holder = el("div", {});
  const readout = el("output", { class: "soft", "aria-live": "polite" });
  let shown = Math.min(FEW_LIVES, sorted.length), row = 0, at = last, focus = () => {};
  const button = el("button", { type: "button", onclick: () => { shown = shown < sorted.length ? sorted.length : FEW_LIVES; draw(); } });
  function describe() {
    const [id, sizes] = sorted[row];
    const words = sizes[at] ? `${count(sizes[at])} ${run.members}` : at > end(sizes) ? "gone" : "not yet born";
    const before = at > 0 && sizes[at] && sizes[at - 1] ? `, ${count(sizes[at - 1])} in the run before` : "";
    const change = all[at].changes.filter(([, previous, current]) => previous.includes(id) || current.includes(id)).map(inWords).join("; ");
    readout.textContent = `${clusterName(id)} in ${all[at].name}: ${words}${before}${change ? `; ${change}` : ""}`;
    holder.querySelectorAll(".link").forEach((link) => link.classList.toggle("active", link.dataset.ends.split(" ").includes(String(id))));
    focus();
  }
  function draw() {
    const width = holder.clientWidth || 700, { x, narrow, left } = columns(width, all.length);
    const some = sorted.slice(0, shown), height = 24 + some.length * LIFE;
    const middle = (r) => 24 + (r + 0.5) * LIFE;
    const place = new Map(some.map(([id], r) => [id, r]));
    const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", class: "lives", "aria-label": `Sizes of ${clusterWord}s by run; the arrow keys go through them, and the table below lists them` });
    picture.append(...runNames(all, x, 12, narrow, width).filter(Boolean), ...all.map((_, i) => svg("line", { class: "grid", x1: x(i), x2: x(i), y1: 20, y2: height })), ...links(all, place, x, middle));
    some.forEach(([id, sizes], r) => picture.append(life(id, sizes, middle(r), x, left, narrow)));
    const ring = svg("rect", { class: "ring", width: 14, height: LIFE - 2, rx: 5 });
    picture.append(ring);
    focus = () => { ring.setAttribute("x", x(at) - 7); ring.setAttribute("y", middle(Math.min(row, shown - 1)) - LIFE / 2 + 1); };
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      row = Math.max(0, Math.min(shown - 1, Math.floor((event.clientY - box.top - 24) / LIFE)));
      at = all.reduce((best, _, i) => (Math.abs(x(i) - event.clientX + box.left) < Math.abs(x(best) - event.clientX + box.left) ? i : best), 0);
      describe();
    });
    picture.addEventListener("click", () => openSheet(sorted[row][0]));
    picture.addEventListener("keydown", (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
      if (event.key === "Enter") openSheet(sorted[row][0]);
      if (!down && !right) return;
      event.preventDefault();
      row = Math.max(0, Math.min(shown - 1, row + down));
      at = Math.max(0, Math.min(last, at + right));
      describe();
    });
    row = Math.min(row, shown - 1);
    button.textContent = shown < sorted.length ? `Show all ${count(sorted.length)}` : `Show the first ${FEW_LIVES}`;
    holder.replaceChildren(picture);
    describe();
  }
  drawings.push(draw);
  function life(id, sizes, y, x, left, narrow) {
    const half = (i) => Math.max(1, (partOf(sizes, i) / widest) * HALF);
    const group = svg("g", {});
    const living = sizes.map((size, i) => (size ? i : -1)).filter((i) => i >= 0);
    const runsOf = living.reduce((spans, i) => { if (spans.length && spans[spans.length - 1].at(-1) === i - 1) spans[spans.length - 1].push(i); else spans.push([i]); return spans; }, []);
    for (const span of runsOf) {
      const ends = span.length > 1 ? span.map((i) => [x(i), half(i)]) : [[x(span[0]) - 5, half(span[0])], [x(span[0]) + 5, half(span[0])]];
      const d = `M${ends.map(([px, h]) => `${px.toFixed(1)} ${(y - h).toFixed(1)}`).join("L")}L${[...ends].reverse().map(([px, h]) => `${px.toFixed(1)} ${(y + h).toFixed(1)}`).join("L")}Z`;
      group.append(svg("path", { d, fill: colourOf(id), opacity: 0.8 }));
      if (span[0] > 0) group.append(svg("circle", { class: "mark born", cx: x(span[0]), cy: y, r: 4 }, svg("title", {}, `${clusterName(id)} began in ${all[span[0]].name}`)));
      if (span.at(-1) < last) group.append(svg("path", { class: "mark died", d: `M${x(span.at(-1)) + 9} ${y - 4}l8 8m0 -8l-8 8` }, svg("title", {}, `${clusterName(id)} was gone after ${all[span.at(-1)].name}`)));
    }
    const words = clusterNames[id] ? fitted(clusterNames[id], left - 18, ` (${id})`) : narrow ? String(id) : clusterName(id);
    group.append(svg("text", { class: "name", x: left - 16, y: y + 4, "text-anchor": "end" }, svg("title", {}, clusterName(id)), words),
      svg("text", { class: "size", x: x(last) + 12, y: y + 4 }, sizes[last] ? count(sizes[last]) : "gone"));
    return group;
  }
  const sizeTable = el("details", {}, el("summary", {}, "Sizes in a table"),
    table([clusterWord, ...all.map((each) => each.name)], sorted.map(([id, sizes]) => [nameOfNumber(id), ...sizes.map((size) => (size ? count(size) : "-"))]), { label: "Sizes by run" }));
  const part = history.of > sorted.length ? ` The ${count(sorted.length)} that were largest, of ${count(history.of)}.` : "";
  const legend = el("p", { class: "soft" }, `A band is as wide as the ${clusterWord}'s share of the run's ${run.plural}; at its right is the size now.${part} `,
    el("span", { class: "born" }, "\u25cf began"), ", ", el("span", { class: "died" }, "\u2715 gone"), ", lines: ", el("span", { class: "split" }, "split"), ", ", el("span", { class: "merged" }, "merged"), ", ", el("span", { class: "reshaped" }, "reshaped"), ".");
  return [legend, holder, readout, el("div", { class: "controls" }, sorted.length > FEW_LIVES ? button : null), sizeTable];
}

// Lines from the cluster that a part came from to the one where it is now, where both are drawn.
function links(all, place, x, middle) {
  return all.flatMap((each, i) => each.changes.filter(([kind]) => i > 0 && kind !== "born" && kind !== "died").flatMap(([kind, previous, current]) =>
    previous.flatMap((from) => current.filter((to) => to !== from && place.has(from) && place.has(to)).map((to) => {
      const [x1, x2, y1, y2] = [x(i - 1), x(i), middle(place.get(from)), middle(place.get(to))];
      return svg("path", { class: `link ${kind}`, "data-ends": `${from} ${to}`, d: `M${x1} ${y1}C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}` }, svg("title", {}, inWords([kind, previous, current])));
    }))));
}

function inWords([kind, previous, current]) {
  const names = (ids) => ids.map(nameOfNumber).join(", ");
  return { born: `born: ${names(current)}`, died: `died: ${names(previous)}`, split: `split: ${names(previous)} into ${names(current)}`, merged: `merged: ${names(previous)} into ${names(current)}` }[kind]
    || `reshaped: ${names(previous)} into ${names(current)}`;
}

function changes(all) {
  const pairs = all.map((each, i) => [i, each]).filter(([i, each]) => i > 0 && each.counts);
  if (!pairs.length) return el("p", { class: "soft" }, "No changes are known.");
  const choice = el("select", { id: "runs-choice" }, pairs.map(([i, each]) => el("option", { value: i }, `${all[i - 1].name} \u2192 ${each.name}`)));
  const holder = el("div", {});
  const sizeOf = new Map(data.history.clusters);
  function show() {
    const i = Number(choice.value), each = all[i];
    const chips = el("ul", { class: "chips" }, KINDS.filter((kind) => each.counts[kind]).map((kind) => el("li", { class: `chip ${kind}`, title: MEANING[kind] }, `${count(each.counts[kind])} ${kind}`)));
    const size = (ids, at) => ids.map((id) => `${nameOfNumber(id)}${sizeOf.has(id) && sizeOf.get(id)[at] ? ` \u00b7 ${count(sizeOf.get(id)[at])}` : ""}`).join(", ") || "-";
    const births = ["born", [], each.changes.filter(([kind]) => kind === "born").flatMap(([, , current]) => current)];
    const deaths = ["died", each.changes.filter(([kind]) => kind === "died").flatMap(([, previous]) => previous), []];
    const others = each.changes.filter(([kind]) => kind !== "born" && kind !== "died");
    const rows = [births, deaths, ...others].filter(([, previous, current]) => previous.length || current.length).map(([kind, previous, current]) => [el("span", { class: kind }, kind), size(previous, i - 1), size(current, i)]);
    const [known, added, gone] = each.data || [0, 0, 0];
    const both = all[i - 1].samples - gone, copies = known - both; // what is known counts further copies, too
    const copied = copies > 0 ? `${count(copies)} ${copies === 1 ? "is a further copy" : "are further copies"} of these, ` : "";
    const told = each.data ? `${count(both)} ${run.plural} are in both runs, ${copied}${count(added)} are new, ${count(gone)} are gone; changes are of those in both.` : "";
    holder.replaceChildren(chips, el("p", { class: "soft" }, told),
      rows.length ? table(["what", `before \u00b7 ${run.members}`, `after \u00b7 ${run.members}`], rows, { label: "Changes from run to run", class: "changes" }) : el("p", { class: "soft" }, `Every ${clusterWord} went on as one.`),
      ...(each.changes_left_out ? [el("p", { class: "soft" }, `${plural(each.changes_left_out, "more change")} not listed.`)] : []));
  }
  choice.value = String(pairs[pairs.length - 1][0]);
  choice.addEventListener("change", show);
  show();
  return [el("div", { class: "controls" }, el("label", { for: "runs-choice" }, "From"), choice), holder];
}
