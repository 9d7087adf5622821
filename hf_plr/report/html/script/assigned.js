// A sample: [row in the data, cluster or -1 = new, nearest cluster, p-value, file], and of segments start and end.
const percent = (number) => `${(100 * number).toFixed(number < 0.0995 ? 1 : 0)}%`;
const small = (number) => (number < 0.0001 ? "below 0.0001" : String(Number(number.toPrecision(2))));

function figureOf(key) {
  const [row, label, nearest, p, file] = sampleOf(key);
  const name = nameOf(key);
  const facts = [`${row}`, spanOf(key) && `${spanOf(key)} s`, label === NOISE ? `p ${small(p)}` : null];
  const image = preview(key, { alt: name }) || el("span", { class: "nothing" }, "no preview");
  const title = [file, label === NOISE ? `nearest: ${clusterName(nearest)}` : clusterName(label), `p ${small(p)}`].filter(Boolean).join(", ");
  const sound = soundOf(key);
  const picture = sound
    ? el("button", { type: "button", class: "picture", title, "aria-label": `Play ${name}`, onclick: () => play(key) }, image, el("span", { class: "play", "aria-hidden": "true" }, "\u25b6"))
    : el("span", { class: "picture", title }, image);
  return el("li", { class: "card" }, picture, el("div", { class: "meta" }, facts.filter(Boolean).join(" \u00b7 ")));
}
const figures = (keys, label) => el("ul", { class: `cards${isSound ? " sounds" : ""}`, "aria-label": label }, keys.map(figureOf));

function overview() {
  const { new: fresh } = data;
  const fits = run.samples - fresh.count;
  document.title = `${data.title} - hf-plr assigned`;
  content.append(el("h1", {}, data.title));
  content.append(el("p", { class: "lead" }, `${count(run.samples)} ${run.plural} \u00b7 assigned to the clusters of ${run.model} \u00b7 written ${run.written}`));
  const isMore = fresh.count > fresh.usual;
  const verdict = isMore
    ? `More ${run.plural} are new than chance explains: ${count(fresh.count)}, where ${run.plural} like those of training would give about ${count(Math.round(fresh.expected))}, and rarely more than ${count(fresh.usual)}.`
    : `No more ${run.plural} are new than chance explains: ${count(fresh.count)}, where ${run.plural} like those of training give up to ${count(fresh.usual)}.`;
  const grew = data.clusters.filter((cluster) => cluster.verdict === "grew").length;
  const shrank = data.clusters.filter((cluster) => cluster.verdict === "shrank").length;
  const tile = (big, words) => el("div", { class: "tile" }, el("b", {}, big), el("span", {}, words));
  section("overview", "Overview", null,
    el("p", { class: isMore ? "warning" : "calm", role: "status" }, verdict),
    el("div", { class: "tiles" },
      tile(`${count(fresh.count)} \u00b7 ${share(fresh.share)}`, `new ${run.plural}; 95% interval ${share(fresh.low)} to ${share(fresh.high)}`),
      tile(count(data.patterns_of), `new ${data.patterns_of === 1 ? "pattern" : "patterns"} proposed`),
      tile(count(fits), `${run.plural} in ${plural(data.clusters_of, "known cluster")}`),
      tile(`${count(grew)} up, ${count(shrank)} down`, "known clusters whose share differs from that in training")),
    histogram(),
    run.unreadable ? el("p", {}, `${plural(run.unreadable, "row")} could not be read and ${run.unreadable === 1 ? "was" : "were"} left out.`) : null);
}

// p-values are evenly spread where samples are like those of training: new ones pile up on the left.
function histogram() {
  const holder = el("div", {});
  const even = run.samples / data.p_values.length;
  const largest = Math.max(even, ...data.p_values);
  onResize(() => {
    if (!holder.clientWidth) return; // not in the page yet
    const width = Math.min(holder.clientWidth, 620), height = 120, left = 44, bottom = 20;
    const step = (width - left) / data.p_values.length;
    const y = (number) => 6 + (1 - number / largest) * (height - 6 - bottom);
    holder.replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Number of ${run.plural} by p-value` },
      [0, largest].map((number) => [svg("line", { class: "grid", x1: left, x2: width, y1: y(number), y2: y(number) }), svg("text", { x: left - 6, y: Math.max(10, y(number) + 4), "text-anchor": "end" }, count(Math.round(number)))]),
      data.p_values.map((number, i) => svg("rect", { class: "bar", x: left + i * step + 0.75, width: Math.max(step - 1.5, 0.5), y: y(number), height: Math.max(0, height - bottom - y(number)) }, svg("title", {}, `${count(number)} ${run.plural} from ${(i / data.p_values.length).toFixed(2)} to ${((i + 1) / data.p_values.length).toFixed(2)}`))),
      svg("line", { class: "even", x1: left, x2: width, y1: y(even), y2: y(even) }),
      [0, 0.5, 1].map((p, i) => svg("text", { x: left + p * (width - left), y: height - 5, "text-anchor": ["start", "middle", "end"][i] }, String(p)))));
  });
  return [el("h3", {}, "How well they fit"), el("p", { class: "soft" }, `A p-value is the share of the run's own ${run.plural} that are at least as novel. ${run.plural[0].toUpperCase()}${run.plural.slice(1)} like those of training have all of them equally often (dashed line); what does not fit piles up on the left. New are those of at most ${small(data.false_alarms)}.`), holder];
}

function patterns() {
  const about = data.patterns.length
    ? `Groups of new ${run.plural} that are alike, the largest first: proposals, to look at. The ${run.plural} shown are evenly spaced from those that fit least to those that fit best.`
    : data.new.count ? `The new ${run.plural} form no group.` : `No ${run.noun} is new.`;
  const part = data.patterns_of > data.patterns.length ? ` The largest ${count(data.patterns.length)} of ${count(data.patterns_of)} are shown.` : "";
  section("patterns", "New patterns", about + part, data.patterns.map((pattern) => el("div", { class: "group" },
    el("div", {}, el("h3", {}, `Pattern ${pattern.number}`), el("p", { class: "soft" }, `${plural(pattern.size, run.noun, run.plural)}, ${share(pattern.size / run.samples)} of all`),
      el("p", { class: "soft" }, "Nearest: ", pattern.near.map(([id, number], i) => [i ? ", " : "", `${clusterName(id)} for ${count(number)}`]), `; mean similarity ${pattern.similarity.toFixed(2)}`),
      data.drift ? sparkline(data.drift.patterns[pattern.number], `Pattern ${pattern.number}`) : null),
    figures(pattern.members, `Pattern ${pattern.number}`))),
  data.lone.size ? [el("h3", {}, `In no pattern: ${plural(data.lone.size, run.noun, run.plural)}`), el("p", { class: "soft" }, "The most novel first."), figures(data.lone.members, "New, in no pattern")] : null);
}

function sparkline(counts, label) {
  const width = 180, height = 34, largest = Math.max(1, ...counts), step = width / counts.length;
  return el("div", { class: "spark" }, svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label} over ${data.drift.column}` },
    counts.map((number, i) => svg("rect", { class: "bar", x: i * step + 0.5, width: Math.max(step - 1, 0.5), y: height - (number / largest) * height, height: (number / largest) * height }, svg("title", {}, `${data.drift.starts[i]}: ${count(number)}`)))),
  el("span", { class: "soft" }, `${data.drift.starts[0]} to ${data.drift.starts[data.drift.starts.length - 1]}`));
}
