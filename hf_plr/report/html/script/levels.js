// The tree of the clusters, cut where the page's reader chooses. A group is a cluster of the level that is shown now;
// its number is that of the run's own level, or else that of its most senior cluster, the first in the order of the tree.
const sizeOf = new Map(data.sizes.clusters.map(([id, size]) => [id, size]));
const tree = data.tree && data.tree.labels.length > 1 ? readTree(data.tree) : null;

function readTree({ labels, sizes, nodes, heights, levels, numbers, names }) {
  const n = labels.length;
  const parts = labels.map((label, i) => ({ id: i, clusters: [label], senior: i, size: sizes[i], height: 0, children: [] }));
  nodes.forEach(([first, second], i) => {
    const children = [parts[first], parts[second]].sort((a, b) => b.size - a.size);
    parts.push({
      id: n + i, clusters: children.flatMap((child) => child.clusters), senior: Math.min(...children.map((child) => child.senior)),
      size: children[0].size + children[1].size, height: heights[i], children,
    });
  });
  const root = parts[parts.length - 1];
  const place = new Map(root.clusters.map((label, i) => [label, i]));
  parts.forEach((node) => { node.first = place.get(node.clusters[0]); }); // of its leaves, which lie side by side
  // The nodes at a cut into k: those that the first n - k merges leave, in the order of the leaves.
  const cut = (k, from = root) => {
    const made = 2 * n - k; // nodes with a lower number are made
    const found = [];
    const waiting = [from];
    while (waiting.length) {
      const node = waiting.pop();
      if (node.id < made) found.push(node);
      else waiting.push(...[...node.children].reverse());
    }
    return found;
  };
  // Number and name of a node as a group of the level of k groups.
  const numberOf = (node, k) => (numbers && numbers[k] ? numbers[k] : labels)[node.senior];
  const nameOf = (node, k) => (names && names[k] && names[k][numberOf(node, k)]) || namesOf(node);
  return { n, root, cut, numberOf, nameOf, levels, heightOf: (k) => (k < n ? heights[n - k - 1] : 0) };
}

const FEW_CLUSTERS = 100, FEW_GROUPS = 60; // with more clusters the page begins with a level of fewer groups
const level = (() => {
  const listeners = [];
  let k = tree ? tree.n : 0;
  let groups = []; // the largest first
  let groupOf = new Map(); // number of the group by cluster
  let byNumber = new Map();
  function set(clusters) {
    if (!tree) return;
    k = Math.max(1, Math.min(tree.n, Math.round(clusters) || 1));
    groups = tree.cut(k).map((node) => ({ number: tree.numberOf(node, k), name: tree.nameOf(node, k), size: node.size, clusters: node.clusters }));
    groups.sort((a, b) => b.size - a.size || a.number - b.number);
    byNumber = new Map(groups.map((group) => [group.number, group]));
    groupOf = new Map(groups.flatMap((group) => group.clusters.map((cluster) => [cluster, group.number])));
    listeners.forEach((call) => call());
  }
  set(tree && tree.n > FEW_CLUSTERS ? Math.max(...tree.levels.filter((each) => each <= FEW_GROUPS), 1) : k);
  return {
    set,
    get clusters() { return k; },
    get isWhole() { return !tree || k === tree.n; },
    get groups() { return groups; },
    group: (number) => byNumber.get(number),
    of: (cluster) => (groupOf.has(cluster) ? groupOf.get(cluster) : cluster),
    // Call now, and whenever another level is chosen.
    onChange(call) { listeners.push(call); call(); },
  };
})();

// The names that people gave to clusters of a group, those of more samples first, and how many have none.
function namesOf(node) {
  const weights = new Map();
  for (const cluster of node.clusters) {
    const name = clusterNames[cluster];
    if (name) weights.set(name, (weights.get(name) || 0) + (sizeOf.get(cluster) || 0));
  }
  const unnamed = node.clusters.filter((cluster) => !clusterNames[cluster]).length;
  const joined = [...weights].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([name]) => name).join(" / ");
  return joined && unnamed ? `${joined} and ${count(unnamed)} without a name` : joined;
}

function nameOfGroup(clusters, number, name) {
  if (clusters.length === 1 && clusters[0] === number && (!name || name === clusterNames[number])) return clusterName(number);
  return name ? `${name} (${number})` : `group ${number}`;
}

function groupName(number) {
  const group = level.group(number);
  if (level.isWhole || !group) return clusterName(number);
  return nameOfGroup(group.clusters, number, group.name);
}

// The largest cluster of a group that has members on the page.
function largestOf(number) {
  if (level.isWhole) return number;
  const clusters = level.group(number).clusters.filter(hasSheet);
  return clusters.length ? clusters.reduce((best, id) => ((sizeOf.get(id) || 0) > (sizeOf.get(best) || 0) ? id : best)) : number;
}

const levelWords = (k) => (k === tree.n ? `${count(k)} ${clusterWord}s` : plural(k, "group"));

// Buttons for the levels, and a slider and a field for any number: all of a page show the same level.
function levelControls() {
  if (!tree) return null;
  const presets = [...new Set([...tree.levels, tree.n])];
  const buttons = presets.map((k) => el("button", { type: "button", onclick: () => level.set(k) }, levelWords(k)));
  const last = Math.log2(tree.n);
  const slider = el("input", { type: "range", min: 0, max: 1000, "aria-label": "Number of groups" });
  const field = el("input", { type: "number", min: 1, max: tree.n, inputmode: "numeric", "aria-label": "Number of groups" });
  slider.addEventListener("input", () => level.set(2 ** ((last * slider.value) / 1000)));
  slider.addEventListener("keydown", (event) => { // one group more or less, where a step of the slider may be none
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (step) { event.preventDefault(); level.set(level.clusters + step); }
  });
  field.addEventListener("change", () => level.set(Number(field.value)));
  level.onChange(() => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(presets[i] === level.clusters)));
    slider.value = String(Math.round((1000 * Math.log2(level.clusters)) / last));
    slider.setAttribute("aria-valuetext", levelWords(level.clusters));
    field.value = String(level.clusters);
  });
  return el("div", { class: "controls levels", role: "group", "aria-label": "Level of the tree" }, el("span", { class: "soft" }, "Level"), el("span", { class: "presets" }, buttons), slider, field);
}
