function curveNamed(name) {
  const curve = data.curves.find((each) => each.name === name);
  return curve && curve.points.length ? curve.points : null;
}
const lastOf = (points) => points[points.length - 1][1];

function heading() {
  document.title = `${data.title} - hf-plr report`;
  content.append(el("h1", {}, data.title));
  const summary = [
    `${count(run.samples)} ${run.plural}`, run.architecture && `${run.architecture} from ${run.start}`,
    typeof run.epochs === "number" ? plural(run.epochs, "epoch") : null,
    typeof run.steps === "number" ? plural(run.steps, "step") : null,
    typeof run.weights_epoch === "number" ? `weights of epoch ${run.weights_epoch}, the best` : null,
    run.written && `written ${run.written}`,
  ];
  content.append(el("p", { class: "lead" }, summary.filter(Boolean).join(" \u00b7 ")));
  if (data.note) content.append(el("p", { class: "warning" }, data.note));
  if (!run.finished) content.append(el("p", { class: "warning" }, "The run had not ended when this was written: labels may still change, and previews fill up from stage to stage."));
}

function overview() {
  section("overview", "Overview", null, tiles(), scores(), el("ul", { class: "facts" }, facts().map((fact) => el("li", {}, fact))));
}

function tiles() {
  const nodes = [];
  const tile = (big, small) => nodes.push(el("div", { class: "tile" }, el("b", {}, big), el("span", {}, small)));
  const sizes = data.sizes;
  if (sizes.of) tile(count(sizes.of), `${clusterWord}s, after refinement`);
  if (sizes.samples && sizes.noise) tile(share(sizes.noise / sizes.samples), `of the ${run.members} in no ${clusterWord}`);
  const agreement = curveNamed("plr/agreement_ari");
  if (agreement) tile(lastOf(agreement).toFixed(2), `agreement with the ${run.stage} before (1 = nothing moved)`);
  const confidence = curveNamed("plr/mean_confidence");
  if (confidence) tile(lastOf(confidence).toFixed(2), "mean confidence of the labels");
  const changed = curveNamed("plr/changed_share");
  const soft = curveNamed("plr/soft_share");
  if (changed && (lastOf(changed) || !soft)) tile(share(lastOf(changed)), "changed by the last refinement");
  if (soft) tile(share(lastOf(soft)), `of the targets on other ${clusterWord}s, by the last refinement`);
  const phases = Object.keys(data.scores);
  if (phases.length) {
    const last = data.scores[phases[phases.length - 1]];
    const key = Object.keys(data.score_titles).find((name) => name in last) || Object.keys(last)[0];
    const values = phases.filter((phase) => key in data.scores[phase]).map((phase) => data.scores[phase][key].toFixed(3));
    if (key) tile(values.length > 1 ? `${values[0]} \u2192 ${values[values.length - 1]}` : values[0], data.score_titles[key] || key);
  } else tile("not known", "accuracy: no labels were given");
  return el("div", { class: "tiles" }, nodes);
}

function scores() {
  const phases = Object.keys(data.scores);
  if (!phases.length) return el("p", {}, "No labels were given, so accuracy is not known.", data.sheets.random.length ? " The random check below gives an estimate from marks on a few samples." : "");
  const names = [...new Set([...Object.keys(data.score_titles), ...phases.flatMap((phase) => Object.keys(data.scores[phase]))])];
  const rows = names.filter((name) => phases.some((phase) => name in data.scores[phase]))
    .map((name) => [data.score_titles[name] || name, ...phases.map((phase) => data.scores[phase][name] ?? "-")]);
  return [table(["Score", ...phases], rows, { label: "Scores" }),
    el("p", { class: "soft" }, `True labels were used for these scores only${run.scored_on ? ` (${run.scored_on})` : ""}.`)];
}

function facts() {
  const lines = [...data.facts];
  const stage = data.stages[data.stages.length - 1];
  if (stage && stage.flow) {
    const words = { kept: "lived on", born: "born", died: "gone", split: "split", merged: "merged", reshaped: "reshaped" };
    const changes = Object.entries(words).filter(([kind]) => stage.flow.counts[kind]).map(([kind, word]) => `${count(stage.flow.counts[kind])} ${word}`);
    lines.push(`At the last ${run.stage}, of the ${clusterWord}s before: ${changes.join(", ")}.`);
  }
  const [largest] = data.sizes.clusters;
  if (largest && data.sizes.samples && largest[1] > data.sizes.samples / 2) {
    lines.push(`Caution: ${clusterName(largest[0])} holds ${share(largest[1] / data.sizes.samples)} of the ${run.members}. This may be a collapse.`);
  }
  const named = data.sizes.clusters.filter(([id]) => clusterNames[id]).length;
  if (named) lines.push(`${count(named)} of the ${plural(data.sizes.of, clusterWord)} ${named === 1 ? "has" : "have"} a name.`);
  const { audit } = data.history ? data.history.runs[data.history.runs.length - 1] : {};
  if (audit) lines.push(`Audited ${audit.written}: ${rateInWords(audit)}.`);
  if (run.source) lines.push(`Before this run, the backbone was trained on ${run.source}.`);
  if (run.unreadable) lines.push(`${plural(run.unreadable, run.noun, run.plural)} could not be read and were left out.`);
  return lines;
}
