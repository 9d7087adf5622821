const PLOT = { height: 150, left: 44, right: 10, top: 8, bottom: 22 };

function overTime() {
  const { drift } = data;
  if (!drift) return;
  const fits = drift.totals.map((total, i) => total - drift.new.counts[i]);
  const notes = [
    `By ${drift.column}, in ${plural(drift.starts.length, "bin")} of ${/^\d/.test(drift.unit) ? drift.unit : `one ${drift.unit}`} each.`,
    drift.unknown ? `${plural(drift.unknown, run.noun, run.plural)} without a time ${drift.unknown === 1 ? "is" : "are"} left out here.` : null,
    drift.new.p === null ? `There are too few new ${run.plural} to tell whether their share changes.` : `The share of new ${run.plural} ${drift.new.changes ? "changes" : "does not surely change"} over time (p ${small(drift.new.p)}).`,
    drift.n_changing ? `${plural(drift.n_changing, "known cluster")} change${drift.n_changing === 1 ? "s" : ""} surely.` : "No known cluster changes surely.",
    "Point at a curve, or move along it with the arrow keys, for its values.",
  ];
  section("time", "Over time", notes.filter(Boolean).join(" "),
    timeChart(`New ${run.plural}`, drift.new.counts, drift.totals, { low: drift.new.low, high: drift.new.high, changes: drift.new.changes }),
    el("h3", {}, "Known clusters, among those that fit"),
    el("div", { class: "curves" }, drift.clusters.map((cluster) => timeChart(clusterName(cluster.id), cluster.counts, fits, { id: cluster.id, changes: cluster.changes }))),
    el("details", {}, el("summary", {}, "Table"), table([`from (${drift.unit})`, run.plural, "that fit", "new", ...drift.clusters.map((cluster) => clusterName(cluster.id))],
      drift.starts.map((start, i) => [start, drift.totals[i], fits[i], drift.new.counts[i], ...drift.clusters.map((cluster) => cluster.counts[i])]), { label: "Over time" })));
}

function timeChart(title, counts, totals, options) {
  const { starts, column } = data.drift;
  const fractions = counts.map((number, i) => (totals[i] ? number / totals[i] : null));
  const top = Math.max(0.001, ...fractions.map((fraction, i) => (fraction === null ? 0 : options.high ? Math.min(options.high[i], 3 * Math.max(fraction, 0.02)) : fraction)));
  const readout = el("output", { class: "value", "aria-live": "polite" });
  const holder = el("div", {});
  let at = counts.length - 1, mark = () => {};
  function show(index, isPointed) {
    at = Math.max(0, Math.min(counts.length - 1, index));
    const words = fractions[at] === null ? "none" : `${share(fractions[at])}${isPointed ? `, ${count(counts[at])} of ${count(totals[at])}` : ""}`;
    readout.textContent = isPointed ? `${words} from ${starts[at]}` : words;
    mark(isPointed);
  }
  onResize(() => {
    if (!holder.clientWidth) return; // not in the page yet
    const { height, left, right, top: above, bottom } = PLOT;
    const width = holder.clientWidth;
    const x = (i) => left + (counts.length > 1 ? i / (counts.length - 1) : 0.5) * (width - left - right);
    const y = (fraction) => above + (1 - Math.min(fraction, top) / top) * (height - above - bottom);
    const known = counts.map((_, i) => i).filter((i) => fractions[i] !== null);
    const line = known.map((i, k) => `${k ? "L" : "M"}${x(i).toFixed(1)} ${y(fractions[i]).toFixed(1)}`).join("");
    const band = options.low && known.length > 1 ? `M${known.map((i) => `${x(i).toFixed(1)} ${y(options.high[i]).toFixed(1)}`).join("L")}L${[...known].reverse().map((i) => `${x(i).toFixed(1)} ${y(options.low[i]).toFixed(1)}`).join("L")}Z` : null;
    const cursor = svg("line", { class: "cursor", y1: above, y2: height - bottom, visibility: "hidden" });
    const colour = options.id === undefined ? null : colourOf(options.id);
    const tinted = (property, node) => { if (colour) node.style[property] = colour; return node; };
    const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `Share of ${title} by ${column}; the arrow keys give its values` },
      [0, top / 2, top].map((fraction) => [svg("line", { class: "grid", x1: left, x2: width - right, y1: y(fraction), y2: y(fraction) }), svg("text", { x: left - 6, y: y(fraction) + 4, "text-anchor": "end" }, percent(fraction))]),
      svg("text", { x: left, y: height - 5 }, starts[0]),
      counts.length > 1 ? svg("text", { x: width - right, y: height - 5, "text-anchor": "end" }, starts[starts.length - 1]) : null,
      band ? svg("path", { class: "band", d: band }) : null,
      tinted("stroke", svg("path", { class: "line", d: line })),
      known.map((i) => tinted("fill", svg("circle", { class: "dot", cx: x(i), cy: y(fractions[i]), r: 2.4 }))), cursor);
    picture.addEventListener("pointermove", (event) => {
      const place = event.clientX - picture.getBoundingClientRect().left;
      show(Math.round(((place - left) / (width - left - right)) * (counts.length - 1)), true);
    });
    for (const name of ["pointerleave", "blur"]) picture.addEventListener(name, () => show(counts.length - 1, false));
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      show(at + step, true);
    });
    mark = (isPointed) => {
      for (const name of ["x1", "x2"]) cursor.setAttribute(name, x(at));
      cursor.setAttribute("visibility", isPointed ? "visible" : "hidden");
    };
    holder.replaceChildren(picture);
    show(at, false);
  });
  return el("div", { class: "curve" }, el("div", { class: "head" }, el("h4", {}, options.id === undefined ? null : swatch(options.id), title, options.changes ? el("span", { class: "chip changes" }, "changes") : null), readout), holder);
}
