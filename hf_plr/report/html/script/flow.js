const KINDS = ["kept", "split", "merged", "reshaped", "born", "died"];
const MEANING = {
  kept: "one cluster goes on as one", split: "of one cluster several have become", merged: "several have become one",
  reshaped: "several have become several others", born: "continues none of the clusters before", died: "no cluster continues it",
};

function flow() {
  const stages = data.stages.filter((stage) => stage.flow);
  if (!stages.length) {
    return section("flow", "What changed", data.stages.length ? `There is one ${run.stage} so far: changes are shown from the second on.` : "This file has no changes from stage to stage.");
  }
  const before = (stage) => data.stages[data.stages.indexOf(stage) - 1];
  const nameOf = (stage) => `${run.stage} ${before(stage) ? before(stage).epoch : "before"} \u2192 ${stage.epoch}`;
  const choice = el("select", { id: "flow-choice" }, stages.map((stage, i) => el("option", { value: i }, nameOf(stage))));
  const slider = el("input", { type: "range", min: 0, max: stages.length - 1, step: 1, "aria-label": `Pair of ${run.stage}s`, disabled: stages.length < 2 });
  const chips = el("ul", { class: "chips" });
  const diagram = el("div", { class: "diagram" });
  const list = el("div", {});
  let chosen = stages.length - 1;
  function show(index) {
    chosen = index;
    choice.value = slider.value = String(index);
    slider.setAttribute("aria-valuetext", nameOf(stages[index]));
    const { counts } = stages[index].flow;
    chips.replaceChildren(...KINDS.filter((kind) => counts[kind]).map((kind) => el("li", { class: `chip ${kind}`, title: MEANING[kind] }, `${count(counts[kind])} ${kind}`)));
    list.replaceChildren(...appeared(stages[index]));
    draw();
  }
  function draw() {
    diagram.replaceChildren(sankey(stages[chosen], diagram.clientWidth || 700));
  }
  choice.addEventListener("change", () => show(Number(choice.value)));
  slider.addEventListener("input", () => show(Number(slider.value)));
  section("flow", "What changed", `How the ${clusterWord}s of one ${run.stage} became those of the next: the largest changes, what is left of a bar going to or coming from other ${clusterWord}s.`,
    el("div", { class: "controls" }, el("label", { for: "flow-choice" }, "From"), choice, slider), chips, diagram, list);
  show(chosen);
  onResize(draw);
}

function sankey(stage, width) {
  const { events } = stage.flow;
  if (!events.length) return el("p", { class: "soft" }, "The changes of this stage are no longer listed one by one: only those of the last stages are.");
  const narrow = width < 560;
  const isNamed = events.some((event) => [...event.previous, ...event.current].some(([id]) => clusterNames[id]));
  const margin = isNamed ? (narrow ? 96 : 210) : narrow ? 74 : 150, bar = 12, gap = 5, least = 15;
  const from = margin, to = width - margin - bar;
  const largest = Math.max(...events.flatMap((event) => [...event.previous, ...event.current].map(([, size]) => size)));
  const heightOf = (size) => Math.max(least, (size / largest) * 60);
  const parts = [];
  const top = { left: 22, right: 22 };
  for (const event of events) {
    const sides = [event.previous.length && "left", event.current.length && "right"].filter(Boolean);
    const start = Math.max(...sides.map((side) => top[side]));
    const place = (clusters) => {
      let y = start + 17;
      const nodes = new Map();
      for (const [id, size] of clusters) {
        nodes.set(id, { y, height: heightOf(size), size, used: 0 });
        y += heightOf(size) + gap;
      }
      return [nodes, y];
    };
    const [left, leftEnd] = place(event.previous);
    const [right, rightEnd] = place(event.current);
    const group = svg("g", { class: event.kind });
    const [at, anchor] = sides.length > 1 ? [width / 2, "middle"] : sides[0] === "left" ? [from, "start"] : [to + bar, "end"];
    group.append(svg("text", { class: "kind", x: at, y: start + 11, "text-anchor": anchor }, event.kind));
    const middle = (from + bar + to) / 2;
    const words = (id) => (id === NOISE ? `no ${clusterWord}` : id === null ? `other ${clusterWord}s` : clusterName(id));
    const rank = (nodes, id) => (nodes.has(id) ? [...nodes.keys()].indexOf(id) : nodes.size);
    const inOrder = [...event.links].sort(([a, b], [c, d]) => rank(left, a) - rank(left, c) || rank(right, b) - rank(right, d));
    for (const [source, end, samples] of inOrder) {
      const a = left.get(source), b = right.get(end);
      const take = (node) => { const y = node.y + node.used; const h = (samples / node.size) * node.height; node.used += h; return [y, h]; };
      const title = svg("title", {}, `${count(samples)} ${run.members}: ${words(source)} \u2192 ${words(end)}`);
      if (a && b) {
        const [y1, h1] = take(a), [y2, h2] = take(b);
        const d = `M${from + bar} ${y1}C${middle} ${y1} ${middle} ${y2} ${to} ${y2}V${y2 + h2}C${middle} ${y2 + h2} ${middle} ${y1 + h1} ${from + bar} ${y1 + h1}Z`;
        group.append(svg("path", { class: "ribbon", d }, title));
      } else if (a || b) {
        const [y, h] = take(a || b);
        const length = (to - from) * 0.18;
        group.append(svg("path", { class: "stub", d: a ? `M${from + bar} ${y}h${length}v${h}h${-length}Z` : `M${to} ${y}h${-length}v${h}h${length}Z` }, title));
      }
    }
    for (const [nodes, x, label, anchor] of [[left, from, from - 7, "end"], [right, to, to + bar + 7, "start"]]) {
      for (const [id, node] of nodes) {
        const isNew = nodes === right && event.kind !== "born" && event.new.includes(id);
        group.append(svg("rect", { class: "node", x, y: node.y, width: bar, height: node.height, rx: 2 }, svg("title", {}, `${clusterName(id)}: ${count(node.size)} ${run.members}`)),
          svg("text", { class: "name", x: label, y: node.y + node.height / 2 + 4, "text-anchor": anchor }, inDiagram(id, node.size, isNew, narrow, margin - 9)));
      }
    }
    parts.push(group);
    for (const side of sides) top[side] = (sides.length > 1 ? Math.max(leftEnd, rightEnd) : side === "left" ? leftEnd : rightEnd) + 6;
  }
  const names = [svg("text", { x: from + bar, y: 12, "text-anchor": "end" }, `before`), svg("text", { x: to, y: 12 }, `${run.stage} ${stage.epoch}`)];
  const height = Math.max(top.left, top.right);
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Largest changes; the table below lists them" }, names, parts);
}

function inDiagram(id, size, isNew, narrow, room) {
  const name = clusterNames[id];
  if (narrow) return name ? fitted(name, room, `: ${count(size)}`) : `${id} (${count(size)})`;
  const ending = `${isNew ? " (new)" : ""}: ${count(size)}`;
  return name ? fitted(name, room, ` (${id})${ending}`) : clusterName(id) + ending;
}

function appeared(stage) {
  const fresh = stage.flow.events.flatMap((event) => event.new.map((id) => ({ id, event })));
  const rows = stage.flow.events.map((event) => [event.kind, event.previous.map(([id]) => nameOfNumber(id)).join(", ") || "-", event.current.map(([id]) => nameOfNumber(id)).join(", ") || "-", event.samples]);
  const inWords = el("details", {}, el("summary", {}, "The changes in a table"), table(["what", "before", "after", run.members], rows, { label: "Changes" }));
  const more = stage.flow.left_out ? el("p", { class: "soft" }, `${plural(stage.flow.left_out, "smaller change")} not shown.`) : null;
  if (!fresh.length) return [el("h3", {}, "What appeared this time"), el("p", { class: "soft" }, `No ${clusterWord} was born or split off.`), more, inWords].filter(Boolean);
  const cards = fresh.slice(0, 24).map(({ id, event }) => {
    const size = (event.current.find(([cluster]) => cluster === id) || [0, 0])[1];
    const origin = event.previous.length ? `from ${event.previous.map(([cluster]) => nameOfNumber(cluster)).join(", ")}` : originOf(event, id);
    const keys = (event.examples && event.examples[id]) || [];
    return el("div", { class: event.kind }, el("h4", {}, `${clusterName(id)} `, el("span", { class: "soft" }, `${count(size)} ${run.members}`)),
      el("p", {}, `${event.kind}, ${origin}`), strip(keys, id));
  });
  return [el("h3", {}, "What appeared this time"), el("div", { class: "appeared" }, cards), more, inWords].filter(Boolean);
}

function originOf(event, id) {
  const parts = event.links.filter(([, end]) => end === id).map(([start, , samples]) => `${count(samples)} from ${start === NOISE ? `no ${clusterWord}` : `other ${clusterWord}s`}`);
  return parts.join(", ") || "of unknown origin";
}

// Small previews of members of a cluster. A mark is of the label now: a sample that has left the cluster shows none.
function strip(keys, cluster) {
  const nodes = keys.filter((key) => data.media[key]).map((key) => {
    const label = sampleOf(key)[1];
    const title = nameOf(key);
    const image = preview(key, { alt: isSound ? "" : title });
    const node = isSound ? el("button", { type: "button", class: "small-preview", title, "aria-label": `Play ${title}`, onclick: () => play(key) }, image) : el("span", { class: "small-preview", title }, image);
    if (label === cluster) {
      marks.follow(node, () => {
        node.dataset.mark = marks.get(key) || "";
        if (isSound) node.setAttribute("aria-label", `Play ${title}${spokenMark(key)}`);
        else image.alt = title + spokenMark(key);
      });
    }
    return node;
  });
  return nodes.length ? el("div", { class: `strip${isSound ? " sounds" : ""}` }, nodes) : null;
}
