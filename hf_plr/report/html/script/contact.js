const FEW_FACES = 120; // clusters of the contact sheet that are shown before all are asked for
const FEW_IN_GROUP = 12, SHOWN_GROUPS = 60; // the same where they are in groups

// The contact sheet: every cluster with a few of its members, the largest first, under the groups of the level.
function contact(open) {
  const all = data.sizes.clusters.filter(([id]) => facesOf(id).length);
  if (!all.length) return;
  const rest = data.sizes.of - all.length;
  const part = rest > 0 ? ` ${plural(rest, `smaller ${clusterWord}`)} ${rest === 1 ? "has" : "have"} no pictures here.` : "";
  const about = run.stage === "round"
    ? `Each ${clusterWord} with recordings in which it is heard, the largest first.${part}`
    : `Each ${clusterWord} with its most confident members, the largest first.${part} Its name leads to all that is shown of it.`;
  const holder = el("div", {});
  section("clusters", `${clusterWord[0].toUpperCase()}${clusterWord.slice(1)}s`, about, levelControls(), holder);
  const byId = new Map(all.map((cluster) => [cluster[0], cluster]));
  level.onChange(() => holder.replaceChildren(level.isWhole ? faces(all, open, FEW_FACES) : groupsOfFaces(byId, open)));
}

function groupsOfFaces(byId, open) {
  const boxOf = (group) => {
    const clusters = group.clusters.map((id) => byId.get(id)).filter(Boolean).sort((a, b) => b[1] - a[1]);
    const facts = `${count(group.size)} ${run.members}${group.clusters.length > 1 ? ` \u00b7 ${plural(group.clusters.length, clusterWord)}` : ""}`;
    return el("div", { class: "group-of-faces" }, el("h3", {}, swatch(group.number), groupName(group.number), el("span", { class: "soft" }, facts)), clusters.length ? faces(clusters, open, FEW_IN_GROUP) : null);
  };
  return unfolding(level.groups, SHOWN_GROUPS, (groups) => el("div", { class: "groups-of-faces" }, groups.map(boxOf)), "group");
}

const facesOf = (id) => {
  const sheet = sheetsById.get(id);
  const keys = (data.sheets.contact && data.sheets.contact[id]) || (sheet ? sheet.most : []);
  return keys.filter((key) => data.media[key]);
};

// A grid of clusters, given as [number, size, confidence].
const mostFaces = Math.max(1, ...data.sizes.clusters.map(([id]) => ((data.sheets.contact && data.sheets.contact[id]) || []).length));
function faces(clusters, open, few) {
  return unfolding(clusters, few, (shown) => {
    const grid = el("ul", { class: `faces${mostFaces === 1 ? " single" : mostFaces < 4 ? " pairs" : ""}` }, shown.map((cluster) => face(cluster, open)));
    rove(grid, [...grid.querySelectorAll(".face-name")]);
    return grid;
  }, clusterWord);
}

// The first few of a list, with a button that shows them all.
function unfolding(list, few, drawn, word) {
  const holder = el("div", {}, drawn(list.slice(0, few)));
  if (list.length > few) {
    holder.append(el("button", {
      type: "button", class: "more",
      onclick: () => { holder.replaceChildren(drawn(list)); paintSwatches(holder); holder.querySelectorAll(".face-name")[0].focus(); },
    }, `Show all ${plural(list.length, word)}`));
  }
  paintSwatches(holder);
  return holder;
}

function face([id, size], open) {
  const title = `${clusterName(id)}: ${count(size)} ${run.members}`;
  return el("li", { class: "face" },
    el("button", { type: "button", class: "face-name", title, "aria-label": title, onclick: () => open(id) }, swatch(id), el("b", {}, nameOfNumber(id)), el("span", { class: "soft" }, count(size))),
    strip(facesOf(id), id));
}
