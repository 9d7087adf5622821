const VERDICTS = { grew: "\u25b2 grew", shrank: "\u25bc shrank", same: "no clear change" };
const SHOWN_CLUSTERS = 30;

function shares() {
  const all = data.clusters;
  const largest = Math.max(0.001, ...all.map((cluster) => Math.max(cluster.training, cluster.here, cluster.training + cluster.high)));
  const shown = all.slice(0, SHOWN_CLUSTERS);
  const sure = all.filter((cluster) => cluster.verdict !== "same").length;
  const part = data.clusters_of > shown.length ? ` ${count(shown.length)} of ${count(data.clusters_of)} are drawn.` : "";
  section("clusters", "Known clusters", `Shares among the ${run.plural} that fit, against those among the ${count(data.training_samples)} of training. ${sure ? `${plural(sure, "cluster")} clearly changed` : "None clearly changed"}: that is judged for all clusters together, so that chance says it of any of them in one of twenty data sets. An interval of its own that leaves the training share out is less than that.${part}`,
    el("p", { class: "legend soft", "aria-hidden": "true" }, el("span", { class: "key training" }), " in training ", el("span", { class: "key here" }), " here, with its 95% interval"),
    el("ul", { class: "shares" }, shown.map((cluster) => el("li", { class: "share-row" },
      el("div", { class: "who" }, swatch(cluster.id), el("span", {}, clusterName(cluster.id))),
      shareBar(cluster, largest),
      el("div", { class: `change ${cluster.verdict}` }, `${share(cluster.training)} \u2192 ${share(cluster.here)}`, el("span", {}, VERDICTS[cluster.verdict])),
      strip(cluster.members)))),
    el("details", {}, el("summary", {}, "Table"), table(["cluster", "in training", "here", "share in training", "share here", "difference from", "to", "verdict", "new near it"],
      all.slice(0, 500).map((cluster) => [clusterName(cluster.id), cluster.size, cluster.count, cluster.training, cluster.here, cluster.low, cluster.high, cluster.verdict, cluster.new_near]), { label: "Known clusters" })));
}

function shareBar(cluster, largest) {
  const width = 320, height = 26, x = (value) => 4 + (Math.max(0, Math.min(largest, value)) / largest) * (width - 8);
  const middle = height / 2;
  const text = `${clusterName(cluster.id)}: ${share(cluster.training)} in training, ${share(cluster.here)} here, difference ${share(cluster.low)} to ${share(cluster.high)}`;
  return svg("svg", { class: "share-bar", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": text }, svg("title", {}, text),
    svg("rect", { class: "track", x: 4, y: middle - 6, width: width - 8, height: 12, rx: 3 }),
    svg("rect", { class: "training", x: 4, y: middle - 6, width: Math.max(1, x(cluster.training) - 4), height: 12, rx: 3 }),
    svg("line", { class: `interval ${cluster.verdict}`, x1: x(cluster.training + cluster.low), x2: x(cluster.training + cluster.high), y1: middle, y2: middle }),
    svg("rect", { class: `here ${cluster.verdict}`, x: x(cluster.here) - 2, y: 2, width: 4, height: height - 4, rx: 2 }));
}

function strip(keys) {
  return el("div", { class: `strip${isSound ? " sounds" : ""}` }, keys.map((key) => {
    const image = preview(key, { alt: nameOf(key), title: sampleOf(key)[4] || nameOf(key) });
    if (!image) return null;
    return soundOf(key) ? el("button", { type: "button", class: "small-preview", "aria-label": `Play ${nameOf(key)}`, onclick: () => play(key) }, image) : image;
  }));
}
