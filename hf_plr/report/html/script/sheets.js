const sheetsById = new Map(data.sheets.clusters.map((sheet) => [sheet.id, sheet]));
const hasSheet = (id) => sheetsById.has(id) || facesOf(id).length > 0;
const SHEETS = { most: ["most_confident", "Most confident"], least: ["least_confident", "Least confident"], changed: ["changed", "Changed"] };

function sheets() {
  const others = data.sizes.clusters.filter(([id]) => !sheetsById.has(id) && hasSheet(id)).map(contactOnly);
  const all = [...data.sheets.clusters, ...others].sort((a, b) => b.size - a.size);
  const byId = new Map(all.map((sheet) => [sheet.id, sheet]));
  if (!all.length) {
    section("sheets", "Members", "This file shows no members.");
    return () => {};
  }
  const isPart = data.sheets.of > data.sheets.clusters.length;
  const coverage = `${isPart ? `${count(data.sheets.clusters.length)} of ${count(data.sheets.of)} ${clusterWord}s have sheets` : `All ${count(all.length)} ${clusterWord}s have sheets`}${isPart && run.stage === "epoch" ? ": the largest, those that have just appeared, and the least confident" : isPart ? ": the largest" : ""}.${others.length ? " Of the others there is what the contact sheet shows." : ""}`;
  const how = run.stage === "round" ? "Clips begin just before the unit is heard, in the recordings that have most of it." : `Within a sheet, ${run.plural} that are alike in confidence are drawn.`;
  const choice = el("select", { id: "sheet-choice" });
  const holder = el("div", {});
  const move = (step) => { const next = choice.selectedIndex + step; if (next >= 0 && next < all.length) { choice.selectedIndex = next; show(); } };
  const back = el("button", { type: "button", onclick: () => move(-1) }, "\u2190 Previous");
  const on = el("button", { type: "button", onclick: () => move(1) }, "Next \u2192");
  const node = section("sheets", "Members", `${coverage} ${how}`, el("div", { class: "controls" }, el("label", { for: "sheet-choice" }, "Members of"), choice, back, on), holder);
  function show() {
    const sheet = byId.get(Number(choice.value));
    back.disabled = choice.selectedIndex === 0;
    on.disabled = choice.selectedIndex === all.length - 1;
    const parts = [];
    for (const [name, [id, title]] of Object.entries(SHEETS)) {
      const keys = sheet[name].filter((key) => data.media[key]);
      if (!sheet[name].length && (name !== "changed" || run.stage === "round")) continue;
      const note = name === "changed" ? ` \u00b7 ${plural(sheet.n_changed, "member")} ${sheet.n_changed === 1 ? "was" : "were"} elsewhere at the ${run.stage} before` : "";
      parts.push(el("h3", {}, run.stage === "round" ? "Where it is heard" : title, el("span", { class: "soft" }, note)));
      if (keys.length) parts.push(cards(keys, id, sheet.id, run.stage === "epoch" && sheetsById.has(sheet.id)));
      else if (sheet[name].length) parts.push(el("p", { class: "soft" }, "There was no room for previews of these, or they are still to come."));
    }
    holder.replaceChildren(el("p", { class: "soft" }, `${clusterName(sheet.id)}: ${count(sheet.size)} ${run.members}${sheet.confidence === null ? "" : `, mean confidence ${sheet.confidence.toFixed(2)}`}`), ...parts);
  }
  const optionOf = (sheet) => el("option", { value: sheet.id }, `${clusterName(sheet.id)} \u00b7 ${count(sheet.size)}${sheet.why.filter((why) => why !== "largest").map((why) => ` \u00b7 ${why}`).join("")}`);
  const optionsOf = (group) => all.filter((sheet) => level.of(sheet.id) === group.number).map(optionOf);
  const inGroups = () => level.groups.map((group) => [group, optionsOf(group)]).filter(([, options]) => options.length)
    .map(([group, options]) => el("optgroup", { label: `${groupName(group.number)} \u00b7 ${count(group.size)}` }, options));
  choice.addEventListener("change", show);
  level.onChange(() => {
    const shown = choice.value || all[0].id;
    choice.replaceChildren(...(level.isWhole ? all.map(optionOf) : inGroups()));
    choice.value = String(shown);
    show();
  });
  return (id) => {
    if (!byId.has(id)) return;
    choice.value = String(id);
    show();
    node.scrollIntoView();
    choice.focus({ preventScroll: true });
  };
}

// A cluster without a sheet of its own, given as [number, size, confidence].
const contactOnly = ([id, size, confidence]) => ({ id, size, confidence, why: [], most: facesOf(id), least: [], changed: [], n_changed: 0 });

function cards(keys, sheet, cluster, markable) {
  const nodes = keys.map((key) => card(key, sheet, cluster, markable));
  const grid = el("div", { class: `cards${isSound ? " sounds" : ""}`, role: "group" }, nodes);
  rove(grid, nodes);
  return grid;
}

function card(key, sheet, cluster, markable) {
  const [row, , before, confidence, file] = sampleOf(key);
  const name = nameOf(key);
  const image = preview(key, { alt: name }) || el("span", { class: "nothing" }, "no preview");
  const picture = el("button", { type: "button", class: "picture", tabindex: -1, title: [file, spanOf(key) && `${spanOf(key)} s`].filter(Boolean).join(", ") || name, "aria-label": isSound ? `Play ${name}` : `${name}: mark as wrong` },
    image, soundOf(key) ? el("span", { class: "play", "aria-hidden": "true" }, "\u25b6") : null);
  const facts = [`${row}`, spanOf(key) && `${spanOf(key)} s`, confidence === null ? null : confidence.toFixed(2), sheet === "changed" ? `was ${before === NOISE ? "none" : nameOfNumber(before)}` : null];
  const node = el("div", { class: "card", role: "group" }, picture, el("div", { class: "meta" }, facts.filter(Boolean).join(" \u00b7 ")));
  const toggle = (mark) => { if (markable) marks.toggle(key, mark); };
  if (markable) {
    const verdict = (mark, sign) => el("button", { type: "button", class: `is-${mark}`, tabindex: -1, "aria-label": `${name} is ${mark}`, onclick: () => toggle(mark) }, sign);
    const buttons = { wrong: verdict("wrong", "\u2717"), right: verdict("right", "\u2713") };
    node.append(el("div", { class: "verdict" }, Object.values(buttons)));
    marks.follow(node, () => {
      const mark = marks.get(key);
      node.dataset.mark = mark || "";
      node.setAttribute("aria-label", `${name}, ${clusterName(cluster)}, ${mark ? `marked as ${mark}` : "not marked"}`);
      for (const [each, button] of Object.entries(buttons)) button.setAttribute("aria-pressed", String(mark === each));
      if (!isSound) picture.setAttribute("aria-pressed", String(mark === "wrong"));
    });
  } else node.setAttribute("aria-label", name);
  picture.addEventListener("click", () => (isSound ? play(key) : toggle("wrong")));
  node.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const mark = { w: "wrong", x: "wrong", r: "right" }[event.key.toLowerCase()];
    if (mark) toggle(mark);
    if (event.key === " " && event.target === node) { event.preventDefault(); if (isSound) play(key); else toggle("wrong"); }
  });
  return node;
}
