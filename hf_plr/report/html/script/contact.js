const FEW_FACES = 120; // clusters of the contact sheet that are shown before all are asked for

// The contact sheet: every cluster with a few of its members, the largest first.
function contact(open) {
  const all = data.sizes.clusters.filter(([id]) => facesOf(id).length);
  if (!all.length) return;
  const rest = data.sizes.of - all.length;
  const part = rest > 0 ? ` ${plural(rest, `smaller ${clusterWord}`)} ${rest === 1 ? "has" : "have"} no pictures here.` : "";
  const about = run.stage === "round"
    ? `Each ${clusterWord} with recordings in which it is heard, the largest first.${part}`
    : `Each ${clusterWord} with its most confident members, the largest first.${part} Its name leads to all that is shown of it.`;
  const holder = el("div", {});
  section("clusters", `${clusterWord[0].toUpperCase()}${clusterWord.slice(1)}s`, about, holder);
  holder.append(faces(all, open));
}

const facesOf = (id) => {
  const sheet = sheetsById.get(id);
  const keys = (data.sheets.contact && data.sheets.contact[id]) || (sheet ? sheet.most : []);
  return keys.filter((key) => data.media[key]);
};

// A grid of clusters, given as [number, size, confidence]; what is beyond the first 120 appears when it is asked for.
function faces(clusters, open) {
  const most = Math.max(...clusters.map(([id]) => facesOf(id).length));
  const grid = el("ul", { class: `faces${most === 1 ? " single" : most < 4 ? " pairs" : ""}${isSound ? " of-sounds" : ""}` });
  const fill = (shown) => {
    grid.replaceChildren(...shown.map((cluster) => face(cluster, open)));
    rove(grid, [...grid.querySelectorAll(".face-name")]);
    paintSwatches();
  };
  fill(clusters.slice(0, FEW_FACES));
  if (clusters.length <= FEW_FACES) return grid;
  const more = el("button", { type: "button", onclick: () => { fill(clusters); more.remove(); grid.querySelectorAll(".face-name")[FEW_FACES].focus(); } }, `Show all ${count(clusters.length)}`);
  return el("div", {}, grid, more);
}

function face([id, size], open) {
  const name = clusterNames[id] || `${id}`;
  const title = `${clusterName(id)}: ${count(size)} ${run.members}`;
  return el("li", { class: "face" },
    el("button", { type: "button", class: "face-name", title, "aria-label": title, onclick: () => open(id) }, swatch(id), el("b", {}, name), el("span", { class: "soft" }, count(size))),
    strip(facesOf(id), id));
}
