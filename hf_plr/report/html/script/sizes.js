function sizes(openSheet) {
  if (!data.sizes.clusters.length) return section("sizes", "Sizes", `There are no ${clusterWord}s yet.`);
  const about = el("p", { class: "about" });
  const readout = el("output", { class: "soft", "aria-live": "polite" });
  const holder = el("div", {}), inTable = el("div", {});
  let bars = [], at = 0, drawn = [];
  section("sizes", "Sizes", null, about, levelControls(), holder, readout, el("details", {}, el("summary", {}, "Table"), inTable));

  // [number, size, mean confidence] of the clusters, or of the groups of the level.
  function measure() {
    if (level.isWhole) return data.sizes.clusters;
    const confidence = new Map(data.sizes.clusters.map(([id, , mean]) => [id, mean]));
    const mean = (group) => group.clusters.reduce((sum, id) => sum + (sizeOf.get(id) || 0) * (confidence.get(id) || 0), 0) / group.size;
    return level.groups.map((group) => [group.number, group.size, mean(group)]);
  }

  function describe() {
    const word = level.isWhole ? clusterWord : "group";
    const of = level.isWhole ? data.sizes.of : bars.length;
    const median = level.isWhole ? data.sizes.median : null;
    const part = of > bars.length ? ` The largest ${count(bars.length)} of ${count(of)} are shown.` : "";
    about.textContent = `${plural(of, word)}, the largest first: ${count(bars[0][1])} ${run.members}${median === undefined || median === null ? "" : `, the median one ${count(median)}`}.${part} Point at a bar for its name; click it, or press Enter, for its members.`;
    const isNamed = bars.some(([id]) => level.isWhole ? clusterNames[id] : namesOf(level.group(id)));
    const nameIn = (id) => (level.isWhole ? clusterNames[id] : namesOf(level.group(id))) || "-";
    const hasConfidence = run.stage === "epoch";
    inTable.replaceChildren(table([word, ...(isNamed ? ["name"] : []), run.members, ...(hasConfidence ? ["mean confidence"] : [])],
      bars.slice(0, 500).map(([id, size, confidence]) => [String(id), ...(isNamed ? [nameIn(id)] : []), size, ...(hasConfidence ? [confidence] : [])]), { label: "Sizes" }));
  }

  function show(index) {
    at = Math.max(0, Math.min(bars.length - 1, index));
    const [id, size, confidence] = bars[at];
    const isOpen = level.isWhole ? hasSheet(id) : level.group(id).clusters.some(hasSheet);
    readout.textContent = `${groupName(id)}: ${count(size)} ${run.members}${run.stage === "epoch" ? `, mean confidence ${confidence.toFixed(2)}` : ""}${isOpen ? "" : "; no sheet of its members"}`;
    drawn.forEach((bar, i) => bar.classList.toggle("active", i === at));
  }

  function draw() {
    const [, largest] = bars[0];
    const width = holder.clientWidth || 700, height = 170, left = 44, bottom = 6;
    const step = (width - left) / bars.length;
    const y = (size) => 8 + (1 - size / largest) * (height - 8 - bottom);
    drawn = bars.map(([, size], i) => svg("rect", { class: "bar", x: left + i * step, width: Math.max(step - (step > 4 ? 1.5 : 0), 0.5), y: y(size), height: Math.max(1, height - bottom - y(size)) }));
    const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", "aria-label": `Sizes of ${level.isWhole ? clusterWord : "group"}s; the arrow keys go through them` },
      [...new Set([largest, Math.round(largest / 2), 0])].map((size) => [svg("line", { class: "grid", x1: left, x2: width, y1: y(size), y2: y(size) }), svg("text", { x: left - 6, y: Math.max(10, y(size) + 4), "text-anchor": "end" }, count(size))]), drawn);
    picture.addEventListener("pointermove", (event) => show(Math.floor((event.clientX - picture.getBoundingClientRect().left - left) / step)));
    picture.addEventListener("click", () => openSheet(largestOf(bars[at][0])));
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
      if (move !== undefined) { event.preventDefault(); show(at + move); }
      if (event.key === "Enter") openSheet(largestOf(bars[at][0]));
    });
    holder.replaceChildren(picture);
    show(at);
  }

  level.onChange(() => { bars = measure(); at = 0; describe(); draw(); });
  onResize(draw);
}
