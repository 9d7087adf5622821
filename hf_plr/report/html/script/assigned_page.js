overview();
patterns();
shares();
overTime();
section("settings", "Settings", null, table(["What", "Value"], [
  ["run", run.model], ["false alarms", String(data.false_alarms)], ["known clusters", count(data.clusters_of)], [`${run.plural} of training`, count(data.training_samples)],
  ...Object.entries(data.versions).map(([name, version]) => [name, String(version)]),
], { class: "settings", label: "Settings" }));
onResize(() => paintSwatches());
redrawn.forEach((draw) => draw()); // now that their places have a width
const kept = Object.keys(data.media).length;
document.getElementById("shown").textContent = `It shows ${count(kept)} of ${count(run.samples)} ${run.plural}${data.media_wanted > kept ? `; ${count(data.media_wanted - kept)} more had no room or could not be shown` : ""}.`;
document.documentElement.dataset.ready = "true";
