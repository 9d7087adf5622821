function map(openSheet) {
  const source = data.map;
  if (!source || !source.positions.length) {
    const why = run.stage === "round" ? "The clusters are units of frames, of which there are too many to be dots on a map." : "This file has no map of the features.";
    return section("map", "Map", why);
  }
  const keys = source.positions;
  const clusters = keys.map((key) => sampleOf(key)[1]);
  let labels = clusters; // groups of the level
  const canvas = el("canvas", { tabindex: 0, role: "img", "aria-label": `Map of ${run.plural}; the arrow keys go from dot to dot, Enter opens the ${clusterWord}` });
  const panel = el("div", { class: "panel", "aria-live": "polite" });
  const names = Object.keys(source.layouts);
  const choice = el("select", { id: "map-which" }, names.map((name) => el("option", {}, name)));
  const filter = el("select", { id: "map-filter" });
  const part = source.of > keys.length ? `${count(keys.length)} of ${count(source.of)} ${run.plural}, drawn at random` : `All ${count(source.of)} ${run.plural}`;
  const words = tree ? ` ${clusterWord}s, or groups of the level,` : ` ${clusterWord}s`;
  section("map", "Map", `${part}, by their features in two dimensions. Colour and shape tell${words} apart as far as they can; grey is no ${clusterWord}. Point at a dot, or move with the arrow keys.`,
    levelControls(), el("div", { class: "controls" }, names.length > 1 ? [el("label", { for: "map-which" }, "Layout"), choice] : null, el("label", { for: "map-filter" }, "Show"), filter),
    el("div", { class: "map" }, canvas, panel));
  const pen = canvas.getContext("2d");
  let places = [], active = null, pinned = false;
  function draw() {
    const width = canvas.clientWidth || 600, height = Math.min(width, 560), ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const scale = Math.min(width, height) / 2 - 16;
    const layout = source.layouts[names.length > 1 ? choice.value : names[0]];
    places = layout.map(([x, y]) => [width / 2 + x * scale * (width / Math.min(width, height)), height / 2 - y * scale]);
    const chosen = filter.value === "" ? null : Number(filter.value);
    const lit = active === null ? null : labels[active];
    const order = keys.map((_, i) => i).sort((a, b) => Number(labels[a] === lit) - Number(labels[b] === lit));
    for (const i of order) {
      const faint = (chosen !== null && labels[i] !== chosen) || (lit !== null && labels[i] !== lit);
      pen.globalAlpha = faint ? 0.13 : 0.88;
      pen.fillStyle = colourOf(labels[i]);
      drawDot(pen, places[i], labels[i], lit !== null && labels[i] === lit ? 5 : 3.6);
    }
    pen.globalAlpha = 1;
    if (active !== null) {
      pen.strokeStyle = isDark() ? "#ffffff" : "#000000";
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(...places[active], 8, 0, 7);
      pen.stroke();
    }
  }
  const visible = (i) => filter.value === "" || labels[i] === Number(filter.value);
  function show(index) {
    active = index;
    draw();
    panel.replaceChildren(...(index === null ? [el("p", { class: "soft wide-row" }, `Point at a dot to ${isSound ? "hear" : "see"} its ${run.noun}.`)] : described(keys[index], openSheet)));
  }
  function nearest(x, y, fits) {
    let best = null, least = Infinity;
    places.forEach(([px, py], i) => {
      if (!visible(i) || !fits(px - x, py - y, i)) return;
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return [best, least];
  }
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("pointermove", (event) => {
    if (pinned) return;
    const [index, distance] = nearest(...at(event), () => true);
    if (index !== null && distance < 400 && index !== active) show(index);
  });
  canvas.addEventListener("click", (event) => {
    const [index, distance] = nearest(...at(event), () => true);
    if (index !== null && distance < 900) { pinned = !(pinned && index === active); show(index); if (isSound) play(keys[index]); } else pinned = false;
  });
  canvas.addEventListener("keydown", (event) => {
    const ways = { ArrowLeft: (dx, dy) => -dx > Math.abs(dy), ArrowRight: (dx, dy) => dx > Math.abs(dy), ArrowUp: (dx, dy) => -dy > Math.abs(dx), ArrowDown: (dx, dy) => dy > Math.abs(dx) };
    if (event.key === "Enter" && active !== null) openSheet(clusters[active]);
    if (event.key === " " && active !== null) { event.preventDefault(); play(keys[active]); }
    if (!ways[event.key]) return;
    event.preventDefault();
    pinned = true;
    const from = active === null ? [(canvas.clientWidth || 600) / 2, canvas.clientHeight / 2] : places[active];
    const [next] = nearest(...from, (dx, dy, i) => i !== active && ways[event.key](dx, dy));
    if (next !== null) show(next);
  });
  canvas.addEventListener("focus", () => { if (active === null) { const [first] = nearest((canvas.clientWidth || 600) / 2, canvas.clientHeight / 2, () => true); if (first !== null) show(first); } });
  filter.addEventListener("change", () => { pinned = false; show(filter.value === "" ? null : labels.indexOf(Number(filter.value))); });
  choice.addEventListener("change", draw);
  level.onChange(() => {
    labels = clusters.map(level.of);
    const groups = [...new Set(labels)].sort((a, b) => a - b);
    filter.replaceChildren(el("option", { value: "" }, `all ${level.isWhole ? clusterWord : "group"}s`), ...groups.map((id) => el("option", { value: id }, groupName(id))));
    show(active);
  });
  onResize(draw);
}

// Circle, square, triangle, diamond by the cluster's number; a cross for no cluster.
function drawDot(pen, [x, y], label, r) {
  pen.beginPath();
  const shape = label === NOISE ? 4 : label % 4;
  if (shape === 0) pen.arc(x, y, r, 0, 7);
  else if (shape === 1) pen.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
  else if (shape === 2) { pen.moveTo(x, y - r * 1.2); pen.lineTo(x + r * 1.1, y + r * 0.9); pen.lineTo(x - r * 1.1, y + r * 0.9); }
  else if (shape === 3) { pen.moveTo(x, y - r * 1.3); pen.lineTo(x + r * 1.3, y); pen.lineTo(x, y + r * 1.3); pen.lineTo(x - r * 1.3, y); }
  else { pen.rect(x - r * 0.8, y - 0.7, r * 1.6, 1.4); pen.rect(x - 0.7, y - r * 0.8, 1.4, r * 1.6); }
  pen.fill();
}

function described(key, openSheet) {
  const [row, label, before, confidence, file] = sampleOf(key);
  const lines = [["row", String(row)], ...(spanOf(key) ? [["seconds", spanOf(key)]] : []), [clusterWord, label === NOISE ? "none" : nameOfNumber(label)]];
  if (!level.isWhole && label !== NOISE) lines.push(["group", groupName(level.of(label))]);
  if (before !== null) lines.push(["before", before === NOISE ? "none" : nameOfNumber(before)]);
  if (confidence !== null) lines.push(["confidence", confidence.toFixed(2)]);
  if (file) lines.push(["file", file]);
  const dl = el("dl", {}, lines.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
  if (marks.isMarkable(key)) {
    const state = el("dd", {});
    dl.append(el("dt", {}, "mark"), state);
    marks.follow(state, () => { state.textContent = marks.get(key) || "not marked"; });
  }
  const parts = [preview(key, { alt: nameOf(key) }) || el("p", { class: "soft" }, "No preview of this one is in the file.")];
  parts.push(dl);
  if (soundOf(key)) parts.push(el("audio", { controls: true, src: soundOf(key), class: "wide-row", onplay: () => player.pause() }));
  if (hasSheet(label)) parts.push(el("button", { type: "button", class: "wide-row", onclick: () => openSheet(label) }, `Members of ${clusterName(label)}`));
  return parts;
}
