const BAR = 66, GAP = 3, HEAD = 30, SIDE = 108; // of a row: height, space below, and the room of its name above or beside
const NARROW = 7, ROOM = 44; // pixels: narrower bars are drawn together; a picture takes this much
const MOST_FACES = 22; // pictures of one bar
const SMALL = 16; // pixels of a bar in which a picture, made smaller, can still be made out
const FEW_ROWS = 8; // clusters up to which every level is a row

// The tree as nested bars: a row per level, from all in one group down to the clusters.
function icicle(open) {
  if (!tree) return;
  let focus = tree.root, active = tree.root, bars = [], isEqual = false;
  const holder = el("div", { class: `icicle${isSound ? " of-sounds" : ""}` });
  const panel = el("div", { class: "node" });
  const widths = el("select", { id: "tree-widths" }, el("option", { value: "" }, run.members), el("option", { value: "equal" }, `${clusterWord}s`));
  const out = el("button", { type: "button", onclick: () => zoom(tree.root) }, "Whole tree");
  section("tree", "Tree",
    `Which ${clusterWord}s belong together: each bar holds those below it, down to the ${plural(tree.n, clusterWord)}. The name of a row chooses its level for the whole page. Point at a bar, or move with the arrow keys; Enter or a double click goes into it, Escape out again.`,
    levelControls(), el("div", { class: "controls" }, el("label", { for: "tree-widths" }, "Widths by"), widths, out), holder, panel);

  const parentOf = new Map();
  (function note(nodes) { nodes.forEach((node) => { node.children.forEach((child) => parentOf.set(child, node)); note(node.children); }); })([tree.root]);

  function rows() {
    const all = tree.n <= FEW_ROWS ? [...Array(tree.n).keys()].map((i) => i + 1) : [1, ...tree.levels, level.clusters, tree.n];
    const found = [[focus === tree.root ? 1 : null, [focus]]];
    for (const k of [...new Set(all)].sort((a, b) => a - b)) {
      const nodes = tree.cut(k, focus);
      if (nodes.length > found[found.length - 1][1].length) found.push([k, nodes]);
    }
    return found;
  }

  function draw() {
    const width = holder.clientWidth;
    if (!width) return; // not on the page yet
    const isNarrow = width < 600;
    const [left, head] = isNarrow ? [0, HEAD] : [SIDE, 0];
    const ends = [0];
    focus.clusters.forEach((cluster) => ends.push(ends[ends.length - 1] + (isEqual ? 1 : sizeOf.get(cluster) || 1)));
    const scale = (width - left) / ends[ends.length - 1];
    const x = (leaf) => scale * ends[leaf - focus.first];
    const hadFocus = holder.contains(document.activeElement) && document.activeElement.getAttribute("role") === "treeitem";
    bars = [];
    const heads = rows().map(([k, nodes], row) => {
      const above = bars.filter((bar) => bar.row === row - 1);
      for (const node of nodes) {
        const [start, end] = [x(node.first), x(node.first + node.clusters.length)];
        const parent = above.find((bar) => bar.start <= start + 1e-6 && end <= bar.end + 1e-6) || null;
        const last = bars[bars.length - 1];
        if (end - start < NARROW && last && last.row === row && last.isNarrow && last.parent === parent) {
          last.nodes.push(node);
          last.end = end;
        } else bars.push({ nodes: [node], row, k, start, end, parent, isNarrow: end - start < NARROW });
      }
      const top = row * (BAR + GAP + head);
      return k === null ? null : rowName(k, top, isNarrow);
    });
    bars.sort((a, b) => a.start - b.start || a.row - b.row); // as a screen reader goes through a tree
    for (const bar of bars) bar.element = drawBar(bar, left, bar.row * (BAR + GAP + head) + head);
    const items = el("div", { role: "tree", "aria-label": `Tree of the ${clusterWord}s` }, bars.map((bar) => bar.element));
    holder.style.height = `${(Math.max(...bars.map((bar) => bar.row)) + 1) * (BAR + GAP + head)}px`;
    holder.replaceChildren(items, ...heads.filter(Boolean));
    out.disabled = focus === tree.root;
    select(barOf(active) || bars[0], hadFocus);
  }

  function rowName(k, top, isNarrow) {
    const button = el("button", { type: "button", class: "row-name", "aria-pressed": String(k === level.clusters), onclick: () => level.set(k), title: k < tree.n ? `The last merge is at height ${tree.heightOf(k).toFixed(3)}` : null }, levelWords(k));
    button.style.top = `${top}px`;
    button.classList.toggle("above", isNarrow);
    return button;
  }

  function drawBar(bar, left, top) {
    const [node] = bar.nodes;
    const isOne = bar.nodes.length === 1;
    const width = bar.end - bar.start;
    const name = isOne ? nodeName(node, bar.k) : `${count(bar.nodes.length)} small ones`;
    const size = bar.nodes.reduce((sum, each) => sum + each.size, 0);
    const within = isOne && node.clusters.length > 1 ? `, ${plural(node.clusters.length, clusterWord)}` : "";
    const label = `${name}, ${count(size)} ${run.members}${within}`;
    const element = el("div", { role: "treeitem", class: `branch${isOne ? "" : " several"}`, "aria-level": bar.row + 1, "aria-label": label, title: label, tabindex: -1 });
    Object.assign(element.style, { left: `${left + bar.start}px`, width: `${Math.max(1, width - (width > 4 ? 1.5 : 0.5))}px`, top: `${top}px`, height: `${BAR}px` });
    element.style.setProperty("--colour", isOne ? colourOf(tree.numberOf(node, bar.k)) : "var(--kept)");
    const caption = isOne ? shortName(node, bar.k) : `+${count(bar.nodes.length)}`;
    if (width > 6 + 8 * Math.min(caption.length, 4)) element.append(el("span", { class: "caption" }, caption));
    const room = Math.floor((width - 6) / (isSound ? 1.4 * ROOM : ROOM)) || Number(width > SMALL);
    if (room > 0) element.append(el("span", { class: "pictures" }, facesOfNode(isOne ? node : together(bar.nodes), Math.min(room, MOST_FACES)).map((key) => preview(key, {}))));
    element.addEventListener("click", () => select(bar, true));
    element.addEventListener("dblclick", () => enter(bar));
    element.addEventListener("focus", () => select(bar, false));
    return element;
  }

  const barOf = (node) => bars.find((bar) => bar.nodes.includes(node)) || null;
  const isSelected = (bar) => bar.nodes.includes(active);

  function select(bar, withFocus) {
    if (!bar) return;
    if (!isSelected(bar)) [active] = bar.nodes;
    for (const each of bars) {
      each.element.tabIndex = each === bar ? 0 : -1;
      each.element.setAttribute("aria-selected", String(each === bar));
    }
    panel.replaceChildren(...about(bar));
    if (withFocus && document.activeElement !== bar.element) bar.element.focus();
    paintSwatches(panel);
  }

  function about(bar) {
    if (bar.nodes.length > 1) {
      return [el("h3", {}, `${count(bar.nodes.length)} small ones, side by side`), el("div", { class: "controls" }, goInto(bar)), strip(facesOfNode(together(bar.nodes), MOST_FACES), null)].filter(Boolean);
    }
    const [node] = bar.nodes;
    const [only] = node.clusters.length === 1 ? node.clusters : [null];
    const facts = [`${count(node.size)} ${run.members}`, share(node.size / tree.root.size), only === null ? plural(node.clusters.length, clusterWord) : null, only === null ? `merged at height ${node.height.toFixed(3)}` : null];
    return [
      el("h3", {}, swatch(tree.numberOf(node, bar.k)), nodeName(node, bar.k), el("span", { class: "soft" }, facts.filter(Boolean).join(" \u00b7 "))),
      only === null ? el("p", { class: "soft which" }, largestFirst(node).slice(0, MOST_FACES).map(nameOfNumber).join(", "), node.clusters.length > MOST_FACES ? ", \u2026" : "") : null,
      el("div", { class: "controls" }, only === null ? goInto(bar) : el("button", { type: "button", onclick: () => open(only) }, `Members of ${clusterName(only)}`)),
      strip(facesOfNode(node, MOST_FACES), null),
    ].filter(Boolean);
  }

  const goInto = (bar) => (target(bar) === focus
    ? el("button", { type: "button", disabled: focus === tree.root, onclick: zoomOut }, "Zoom out")
    : el("button", { type: "button", onclick: () => enter(bar) }, "Zoom in"));

  // What a bar leads into: its node, or the smallest one that holds all of its nodes.
  function target(bar) {
    let [node] = bar.nodes;
    const last = bar.nodes[bar.nodes.length - 1];
    const end = last.first + last.clusters.length;
    while (node.first + node.clusters.length < end) node = parentOf.get(node);
    return node;
  }

  function enter(bar) {
    const node = target(bar);
    if (node.clusters.length === 1) open(node.clusters[0]);
    else if (node !== focus) zoom(node);
  }

  function zoom(node) {
    const isWithin = holder.contains(document.activeElement) || panel.contains(document.activeElement);
    [focus, active] = [node, node];
    draw();
    if (isWithin) select(barOf(active) || bars[0], true);
  }

  function zoomOut() {
    if (focus === tree.root) return;
    const before = focus;
    let node = parentOf.get(before); // up to the next bar that a row shows
    const levels = [1, ...tree.levels];
    while (node !== tree.root && !levels.some((k) => tree.cut(k).includes(node))) node = parentOf.get(node);
    zoom(node);
    select(barOf(before) || bars[0], true);
  }

  holder.addEventListener("keydown", (event) => {
    const bar = bars.find((each) => each.element === event.target);
    if (!bar || event.ctrlKey || event.metaKey || event.altKey) return;
    const row = bars.filter((each) => each.row === bar.row).sort((a, b) => a.start - b.start);
    const at = row.indexOf(bar);
    const moves = {
      ArrowLeft: () => row[at - 1], ArrowRight: () => row[at + 1], Home: () => row[0], End: () => row[row.length - 1],
      ArrowUp: () => bar.parent, ArrowDown: () => bars.find((each) => each.parent === bar),
    };
    if (moves[event.key]) { event.preventDefault(); select(moves[event.key](), true); }
    else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); enter(bar); }
    else if (event.key === "Escape") zoomOut();
  });
  widths.addEventListener("change", () => { isEqual = widths.value === "equal"; draw(); });
  level.onChange(draw);
  onResize(draw);
}

// The name of a node in the row of the level of k groups.
const nodeName = (node, k) => (node === tree.root ? `all ${count(tree.n)} ${clusterWord}s` : nameOfGroup(node.clusters, tree.numberOf(node, k), tree.nameOf(node, k)));

const shortName = (node, k) => (node === tree.root ? "all" : tree.nameOf(node, k) || String(tree.numberOf(node, k)));

const largestFirst = (node) => [...node.clusters].sort((a, b) => (sizeOf.get(b) || 0) - (sizeOf.get(a) || 0));
const together = (nodes) => ({ clusters: nodes.flatMap((node) => node.clusters) });

// Pictures of a node: one of each of its largest clusters, and if there is room a second one of each, and so on.
function facesOfNode(node, room) {
  const largest = largestFirst(node).slice(0, room).map(facesOf);
  const found = [];
  for (let rank = 0; found.length < room && largest.some((keys) => keys.length > rank); rank += 1) {
    found.push(...largest.map((keys) => keys[rank]).filter(Boolean));
  }
  return found.slice(0, room);
}
