const CHART = { width: 300, height: 138, left: 40, right: 10, top: 8, bottom: 22 };

function curves() {
  if (!data.curves.length) return section("curves", "Curves", "Nothing has been logged yet.");
  const named = (pattern) => data.curves.filter((curve) => pattern.test(curve.name));
  const folded = {
    "Clusters born, died, split and merged": named(/plr\/(born|died|split|merged|kept|reshaped)$/),
    "Time and optimizer": named(/seconds|learning_rate|grad_norm|plr\/(round|frames)$/),
  };
  const first = data.curves.filter((curve) => !Object.values(folded).flat().includes(curve));
  const all = data.curves.flatMap((curve) => curve.points.map(([epoch]) => epoch));
  const span = [Math.min(...all), Math.max(...all)];
  return section("curves", "Curves", "Point at a curve, or move along it with the arrow keys, for its values.",
    el("div", { class: "curves" }, first.map((curve) => chart(curve, span))),
    Object.entries(folded).filter(([, group]) => group.length).map(([title, group]) =>
      el("details", { class: "more-curves" }, el("summary", {}, title), el("div", { class: "curves" }, group.map((curve) => chart(curve, span))))));
}

function rangeOf(curve) {
  const values = curve.points.map(([, y]) => y);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (curve.low !== null && curve.high !== null) return [Math.min(low, curve.low), Math.max(high, curve.high)];
  if (curve.low === 0 && low >= 0 && low < 0.5 * high) low = 0;
  if (values.every(Number.isInteger)) {
    if (low > 0 && high - low < 3) low -= 1;
    return [low, low + 2 * Math.max(1, Math.ceil((high - low) / 2))];
  }
  if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
  const room = 0.06 * (high - low);
  return [low === 0 ? 0 : low - room, high + room];
}

function chart(curve, [start, end]) {
  const { width, height, left, right, top, bottom } = CHART;
  const [low, high] = rangeOf(curve);
  const x = (epoch) => left + (end > start ? (epoch - start) / (end - start) : 0.5) * (width - left - right);
  const y = (number) => top + (1 - (number - low) / (high - low)) * (height - top - bottom);
  const readout = el("output", { class: "value", "aria-live": "polite" });
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  const dot = svg("circle", { class: "dot", r: 4 });
  const path = curve.points.map(([epoch, number], i) => `${i ? "L" : "M"}${x(epoch).toFixed(1)} ${y(number).toFixed(1)}`).join("");
  const decimals = Math.max(0, Math.min(6, Math.ceil(-Math.log10((high - low) / 2)) + ((high - low) % 2 === 0 ? 0 : 1)));
  const short = (number) => (Math.abs(number) >= 100000 ? number.toExponential(1) : Number(number.toFixed(decimals)).toLocaleString("en"));
  const ofEpoch = (epoch) => String(Number(epoch.toFixed(1)));
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `${curve.title} by epoch; the arrow keys give its values` },
    [low, (low + high) / 2, high].map((number) => [
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(number), y2: y(number) }),
      svg("text", { x: left - 6, y: y(number) + 4, "text-anchor": "end" }, short(number)),
    ]),
    svg("text", { x: left, y: height - 5 }, ofEpoch(start)),
    svg("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, "epoch"),
    end > start ? svg("text", { x: width - right, y: height - 5, "text-anchor": "end" }, ofEpoch(end)) : null,
    svg("path", { class: "line", d: path }),
    curve.points.length <= 40 ? curve.points.map(([epoch, number]) => svg("circle", { class: "dot", cx: x(epoch), cy: y(number), r: 2.2 })) : null,
    cursor, dot);
  let at = curve.points.length - 1;
  function show(index, withCursor) {
    at = Math.max(0, Math.min(curve.points.length - 1, index));
    const [epoch, number] = curve.points[at];
    readout.textContent = withCursor ? `${value(number)} at ${Number(epoch.toFixed(2))}` : value(number);
    for (const [name, place] of [["cx", x(epoch)], ["cy", y(number)]]) dot.setAttribute(name, place);
    for (const name of ["x1", "x2"]) cursor.setAttribute(name, x(epoch));
    cursor.setAttribute("visibility", withCursor ? "visible" : "hidden");
  }
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const pointer = ((event.clientX - box.left) / box.width) * width;
    let best = 0;
    curve.points.forEach(([epoch], i) => { if (Math.abs(x(epoch) - pointer) < Math.abs(x(curve.points[best][0]) - pointer)) best = i; });
    show(best, true);
  });
  picture.addEventListener("pointerleave", () => show(curve.points.length - 1, false));
  picture.addEventListener("blur", () => show(curve.points.length - 1, false));
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(at + step, true);
  });
  show(at, false);
  return el("div", { class: "curve" }, el("div", { class: "head" }, el("h4", {}, curve.title), readout), el("p", { class: "what" }, curve.what || curve.name), picture,
    el("details", {}, el("summary", {}, "Table"), table(["epoch", curve.title], curve.points, { label: curve.title })));
}
