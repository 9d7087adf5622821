// What an auditor says of samples: kept in the browser for these labels, and downloaded as a table.
const marks = (() => {
  const name = `hf-plr-marks-${data.labels_id || data.title}`;
  const found = new Map(Object.entries(store.read(name) || {}));
  const followers = new Map();
  const keyOf = (key, sheet) => `${sheet}|${key}`;
  const changed = [];
  const tell = () => {
    store.write(name, Object.fromEntries(found));
    for (const [node, show] of followers) {
      if (node.isConnected) show();
      else followers.delete(node);
    }
    changed.forEach((call) => call());
  };
  const put = (key, sheet, cluster, mark) => {
    if (mark === null) found.delete(keyOf(key, sheet));
    else found.set(keyOf(key, sheet), { index: sampleOf(key)[0], label: cluster, sheet, mark });
  };
  return {
    of: (key, sheet) => (found.get(keyOf(key, sheet)) || {}).mark || null,
    set(key, sheet, cluster, mark) { put(key, sheet, cluster, mark); tell(); },
    setAll(entries) { entries.forEach((entry) => put(...entry)); tell(); },
    clear() { found.clear(); tell(); },
    follow(node, show) { followers.set(node, show); },
    onChange(call) { changed.push(call); },
    rows: () => [...found.values()].filter((row) => Number.isInteger(row.index) && Number.isInteger(row.label)),
    table() {
      const rows = this.rows().sort((a, b) => a.sheet.localeCompare(b.sheet) || a.index - b.index);
      return ["index,label,sheet,mark", ...rows.map((row) => [row.index, row.label, row.sheet, row.mark].join(","))].join("\n") + "\n";
    },
  };
})();

function check() {
  const keys = data.sheets.random.filter((key) => data.media[key]);
  if (run.stage === "round") return;
  if (!keys.length) {
    section("check", "Random check", data.sheets.random.length ? "Its previews are still to come." : "This file has no random check.");
    return;
  }
  const byCluster = new Map();
  keys.forEach((key) => { const label = sampleOf(key)[1]; byCluster.set(label, [...(byCluster.get(label) || []), key]); });
  const sizesById = new Map(data.sizes.clusters.map(([id, size]) => [id, size]));
  const groups = [...byCluster].sort((a, b) => (sizesById.get(b[0]) || 0) - (sizesById.get(a[0]) || 0) || a[0] - b[0]).map(([label, members]) => el("div", { class: "group" },
    el("div", {}, el("h4", {}, clusterName(label)), sizesById.has(label) ? el("div", { class: "soft" }, `${count(sizesById.get(label))} ${run.members}; typical ones:`) : null,
      strip((data.sheets.typical[label] || []).filter((key) => !members.includes(key)))),
    cards(members, "random", label, true)));
  section("check", "Random check",
    `${plural(keys.length, run.noun, run.plural)}, drawn uniformly from all that are in a ${clusterWord}: what is wrong here is, within chance, what is wrong everywhere. Mark what does not belong with the typical members of its ${clusterWord}.`,
    el("p", { class: "soft" }, "Click, or move with the arrow keys and press ", el("kbd", {}, "w"), " for wrong, ", el("kbd", {}, "r"), " for right; the same key again takes it back. The sheets of members above can be marked too; they show where to look, and are not counted as a random draw."),
    el("div", {}, groups));
  parent.append(labelsBox(keys));
}

function labelsBox(keys) {
  const state = el("p", { role: "status" });
  const rest = el("button", { type: "button", id: "rest", onclick: () => marks.setAll(keys.filter((key) => !marks.of(key, "random")).map((key) => [key, "random", sampleOf(key)[1], "right"])) }, "The rest are right");
  const save = el("button", { type: "button", class: "main", id: "download", onclick: download }, "Download marks.csv");
  const clear = el("button", { type: "button", onclick: () => { if (window.confirm("Forget all marks?")) marks.clear(); } }, "Clear");
  const folder = /^[\w./-]+$/.test(run.output_dir) ? run.output_dir : `'${run.output_dir.replace(/'/g, "'\\''")}'`;
  document.getElementById("check").append(el("h3", {}, "What to do with the marks"), el("p", { class: "soft" }, "Download them below; then, where the run's output folder is, this gives the estimated error rate with its interval, and where to look first:"),
    el("code", { class: "command", tabindex: 0 }, `hf-plr audit ${folder} --marks marks.csv`));
  function show() {
    const of = (mark) => keys.filter((key) => marks.of(key, "random") === mark).length;
    const [wrong, right] = [of("wrong"), of("right")];
    const elsewhere = marks.rows().length - wrong - right;
    state.textContent = `Random check: ${wrong} wrong, ${right} right, ${keys.length - wrong - right} of ${keys.length} not marked.${elsewhere > 0 ? ` Other sheets: ${elsewhere} marked.` : ""}`;
    rest.disabled = wrong + right === keys.length;
    save.disabled = clear.disabled = !marks.rows().length;
  }
  marks.onChange(show);
  show();
  return el("div", { class: "labels", role: "region", "aria-label": "Labels" }, state, rest, save, clear);
}

function download() {
  const url = URL.createObjectURL(new Blob([marks.table()], { type: "text/csv" }));
  const link = el("a", { href: url, download: "marks.csv" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
