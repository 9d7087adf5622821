function settings() {
  const parts = [];
  if (data.settings.length) parts.push(table(["Setting", "Value"], data.settings.map(([name, text]) => [name, String(text)]), { class: "settings", label: "Settings" }));
  else parts.push(el("p", {}, "All settings are the defaults."));
  parts.push(el("h3", {}, "Versions"), table(["Package", "Version"], Object.entries(data.versions).map(([name, version]) => [name, String(version)]), { label: "Versions" }));
  section("settings", "Settings", "Those that differ from the defaults.", parts);
}

let openSheet = () => {};
const open = (id) => openSheet(id);
heading();
contact(open);
overview();
icicle(open);
map(open);
sizes(open);
within(el("div", {}), () => {
  openSheet = sheets();
  check();
});
curves();
flow();
runs();
settings();
onResize(() => paintSwatches());
const kept = Object.keys(data.media).length;
const expected = data.media_wanted || 0;
document.getElementById("shown").textContent = `It shows ${count(kept)} ${run.plural}${run.samples > kept ? ` of ${count(run.samples)}` : ""}${expected > kept ? `; ${count(expected - kept)} more had no room or are still to come` : ""}.`;
document.documentElement.dataset.ready = "true";
