function sizes(openSheet) {
  const bars = data.sizes.clusters;
  if (!bars.length) return section("sizes", "Sizes", `There are no ${clusterWord}s yet.`);
  const [, largest] = bars[0];
  const note = data.sizes.of > bars.length ? ` The largest ${count(bars.length)} of ${count(data.sizes.of)} are shown.` : "";
  const readout = el("output", { class: "soft", "aria-live": "polite" });
  const holder = el("div", {});
  let at = 0, drawn = [];
  section("sizes", "Sizes", `${plural(data.sizes.of, clusterWord)}, the largest first: ${count(largest)} ${run.members}${data.sizes.median === undefined ? "" : `, the median one ${count(data.sizes.median)}`}.${note} Point at a bar for its name; click it, or press Enter, for its members.`, holder, readout);
  function show(index) {
    at = Math.max(0, Math.min(bars.length - 1, index));
    const [id, size, confidence] = bars[at];
    readout.textContent = `${clusterName(id)}: ${count(size)} ${run.members}${run.stage === "epoch" ? `, mean confidence ${confidence.toFixed(2)}` : ""}${hasSheet(id) ? "" : "; no sheet of its members"}`;
    drawn.forEach((bar, i) => bar.classList.toggle("active", i === at));
  }
  onResize(() => {
    const width = holder.clientWidth || 700, height = 170, left = 44, bottom = 6;
    const step = (width - left) / bars.length;
    const y = (size) => 8 + (1 - size / largest) * (height - 8 - bottom);
    drawn = bars.map(([, size], i) => svg("rect", { class: "bar", x: left + i * step, width: Math.max(step - (step > 4 ? 1.5 : 0), 0.5), y: y(size), height: Math.max(1, height - bottom - y(size)) }));
    const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", "aria-label": `Sizes of ${clusterWord}s; the arrow keys go through them` },
      [...new Set([largest, Math.round(largest / 2), 0])].map((size) => [svg("line", { class: "grid", x1: left, x2: width, y1: y(size), y2: y(size) }), svg("text", { x: left - 6, y: Math.max(10, y(size) + 4), "text-anchor": "end" }, count(size))]), drawn);
    picture.addEventListener("pointermove", (event) => show(Math.floor((event.clientX - picture.getBoundingClientRect().left - left) / step)));
    picture.addEventListener("click", () => openSheet(bars[at][0]));
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
      if (move !== undefined) { event.preventDefault(); show(at + move); }
      if (event.key === "Enter") openSheet(bars[at][0]);
    });
    holder.replaceChildren(picture);
    show(at);
  });
  const isNamed = bars.some(([id]) => clusterNames[id]);
  document.getElementById("sizes").append(el("details", {}, el("summary", {}, "Table"),
    table([clusterWord, ...(isNamed ? ["name"] : []), run.members, ...(run.stage === "epoch" ? ["mean confidence"] : [])], bars.slice(0, 500).map(([id, size, confidence]) => [String(id), ...(isNamed ? [clusterNames[id] || "-"] : []), size, ...(run.stage === "epoch" ? [confidence] : [])]), { label: "Sizes" })));
}
