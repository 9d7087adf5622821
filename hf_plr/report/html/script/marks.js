const MARKS = ["wrong", "right"];
const RANDOM = "random";

// An auditor's marks, one per sample wherever it is shown: kept in the browser for these labels, downloaded as a table.
const marks = (() => {
  const name = `hf-plr-marks-${data.labels_id || data.title}`;
  const byKey = new Map();
  const followers = new Map();
  const listeners = [];
  const sheetByKey = new Map(run.stage === "epoch" ? data.sheets.random.map((key) => [key, RANDOM]) : []);
  for (const sheet of run.stage === "epoch" ? data.sheets.clusters : []) {
    for (const [kind, [id]] of Object.entries(SHEETS)) {
      for (const key of sheet[kind]) if (!sheetByKey.has(key)) sheetByKey.set(key, id);
    }
  }
  // Earlier pages kept a mark per sheet, by "sheet|key". The random check wins: there the typical members are in sight.
  function load() {
    const entries = Object.entries(store.read(name) || {}).map(([place, entry]) => {
      const [key, sheet] = place.split("|").reverse();
      return { key, trust: sheet === undefined ? 2 : sheet === RANDOM ? 1 : 0, mark: sheet === undefined ? entry : entry && entry.mark };
    });
    byKey.clear();
    entries.sort((a, b) => a.trust - b.trust).filter(({ mark }) => MARKS.includes(mark)).forEach(({ key, mark }) => byKey.set(key, mark));
  }
  function notify() {
    for (const [node, show] of followers) {
      if (node.isConnected) show();
      else followers.delete(node);
    }
    listeners.forEach((call) => call());
  }
  function save() {
    store.write(name, Object.fromEntries(byKey));
    notify();
  }
  load();
  window.addEventListener("storage", (event) => { if (event.key === name || event.key === null) { load(); notify(); } });
  return {
    get: (key) => byKey.get(key) || null,
    toggle(key, mark) {
      if (byKey.get(key) === mark) byKey.delete(key);
      else byKey.set(key, mark);
      save();
    },
    setAll(keys, mark) { keys.forEach((key) => byKey.set(key, mark)); save(); },
    clear() { byKey.clear(); save(); },
    isMarkable: (key) => sheetByKey.has(key),
    // Call `show` now, and after every change as long as the node is on the page.
    follow(node, show) { followers.set(node, show); show(); },
    onChange(call) { listeners.push(call); call(); },
    kept: () => [...byKey.keys()],
    // One row per marked sample. Those of the random check are all there, with an empty mark if they have none.
    table() {
      const isRow = (key) => byKey.has(key) || (sheetByKey.get(key) === RANDOM && data.media[key]);
      const rows = [...sheetByKey].filter(([key]) => isRow(key)).map(([key, sheet]) => [...sampleOf(key).slice(0, 2), sheet, byKey.get(key) || "", ...sampleOf(key).slice(5)]);
      const integers = rows.filter(([index, label, , , ...span]) => Number.isInteger(index) && Number.isInteger(label) && span.every(Number.isFinite));
      integers.sort((a, b) => Number(b[2] === RANDOM) - Number(a[2] === RANDOM) || a[0] - b[0] || a[4] - b[4]);
      const spans = rows.some((row) => row.length > 4) ? ",start,end" : "";
      return [`index,label,sheet,mark${spans}`, ...integers.map((row) => row.join(","))].join("\n") + "\n";
    },
  };
})();
const spokenMark = (key) => (marks.get(key) ? `, marked as ${marks.get(key)}` : "");

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
  const groups = [...byCluster].sort((a, b) => (sizesById.get(b[0]) || 0) - (sizesById.get(a[0]) || 0) || a[0] - b[0]).map(([label, members]) => {
    const typical = strip((data.sheets.typical[label] || []).filter((key) => !members.includes(key)), label);
    const size = sizesById.has(label) ? `${count(sizesById.get(label))} ${run.members}` : null;
    return el("div", { class: "group" },
      el("div", {}, el("h4", {}, clusterName(label)), el("div", { class: "soft" }, [size, typical && "typical ones:"].filter(Boolean).join("; ")), typical),
      cards(members, RANDOM, label, true));
  });
  section("check", "Random check",
    `${plural(keys.length, run.noun, run.plural)}, drawn uniformly from all that are in a ${clusterWord}: what is wrong here is, within chance, what is wrong everywhere. Mark each one: wrong if it does not belong with the typical members of its ${clusterWord}, right if it does.`,
    el("p", { class: "soft" }, "Click, or move with the arrow keys and press ", el("kbd", {}, "w"), " for wrong, ", el("kbd", {}, "r"), ` for right; the same key again takes it back. Members in the sheets above can be marked too. Each ${run.noun} has one mark, wherever it is shown. The error rate is estimated from the ${run.plural} of this check alone; the others show where to look.`),
    el("div", {}, groups));
  parent.append(labelsBox(keys));
}

function labelsBox(keys) {
  const state = el("p", { role: "status" });
  const unmarked = () => keys.filter((key) => !marks.get(key));
  const rest = el("button", { type: "button", id: "rest", onclick: () => marks.setAll(unmarked(), "right") }, "The rest are right");
  const save = el("button", { type: "button", class: "main", id: "download", onclick: download }, "Download marks.csv");
  const clear = el("button", { type: "button", onclick: () => { if (window.confirm("Forget all marks?")) marks.clear(); } }, "Clear");
  const folder = /^[\w./-]+$/.test(run.output_dir) ? run.output_dir : `'${run.output_dir.replace(/'/g, "'\\''")}'`;
  document.getElementById("check").append(el("h3", {}, "What to do with the marks"), el("p", { class: "soft" }, "Download them below; then, where the run's output folder is, this gives the estimated error rate with its interval, and where to look first:"),
    el("code", { class: "command", tabindex: 0 }, `hf-plr audit ${folder} --marks marks.csv`));
  marks.onChange(() => {
    const [wrong, right] = MARKS.map((mark) => keys.filter((key) => marks.get(key) === mark).length);
    const shown = marks.kept().filter(marks.isMarkable).length;
    const [others, absent] = [shown - wrong - right, marks.kept().length - shown];
    state.textContent = `Random check: ${wrong} wrong, ${right} right, ${keys.length - wrong - right} of ${keys.length} not marked.`
      + (others > 0 ? ` Other ${run.plural}: ${others} marked.` : "")
      + (absent > 0 ? ` ${absent} marked before ${absent === 1 ? "is" : "are"} not on this page.` : "");
    rest.disabled = wrong + right === keys.length;
    save.disabled = !shown;
    clear.disabled = !marks.kept().length;
  });
  return el("div", { class: "labels", role: "region", "aria-label": "Marks" }, state, rest, save, clear);
}

function download() {
  const url = URL.createObjectURL(new Blob([marks.table()], { type: "text/csv" }));
  const link = el("a", { href: url, download: "marks.csv" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
