// Names in the data are others' text: they become text of elements, never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const run = data.run;
const content = document.getElementById("content");
const SVG = "http://www.w3.org/2000/svg";
const NOISE = -1;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const count = (number) => (number === null || number === undefined ? "?" : Number(number).toLocaleString("en"));
const share = (number) => `${(100 * number).toFixed(1)}%`;
const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many || one + "s"}`;
const clusterWord = run.stage === "round" ? "unit" : "cluster";
const clusterNames = data.names || {}; // by number, those that people gave
const nameOfNumber = (id) => (clusterNames[id] ? `${clusterNames[id]} (${id})` : String(id));
const clusterName = (id) => (id === NOISE ? `no ${clusterWord}` : clusterNames[id] ? nameOfNumber(id) : `${clusterWord} ${id}`);

// A text and what follows it, cut so that both fit into this many pixels of an SVG.
const ruler = document.createElement("canvas").getContext("2d");
function fitted(text, room, ending = "", size = 12) {
  ruler.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  const isFitting = (words) => ruler.measureText(words).width <= room;
  let length = text.length;
  if (isFitting(text + ending)) return text + ending;
  while (length > 1 && !isFitting(`${text.slice(0, length)}\u2026${ending}`)) length -= 1;
  return `${text.slice(0, length).trimEnd()}\u2026${ending}`;
}

function value(number) {
  if (Number.isInteger(number)) return count(number);
  const size = Math.abs(number);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return number.toExponential(2);
  return size >= 100 ? number.toFixed(1) : number.toFixed(3);
}

let parent = content;
function within(wrapper, build) {
  content.append(wrapper);
  parent = wrapper;
  build();
  parent = content;
}

function section(id, title, about, ...children) {
  const node = el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title));
  if (about) node.append(el("p", { class: "about" }, about));
  node.append(...children.flat(Infinity).filter(Boolean));
  document.getElementById("nav").append(el("a", { href: `#${id}` }, title));
  parent.append(node);
  return node;
}

function table(heads, rows, attributes) {
  const number = (cell) => typeof cell === "number";
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": (attributes && attributes.label) || "Table" },
    el("table", { class: attributes && attributes.class },
      el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", class: rows.length && number(rows[0][i]) && "number" }, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", { class: number(cell) && "number" }, number(cell) ? value(cell) : cell)))))));
}

function preview(key, attributes) {
  const media = data.media[key];
  if (!media || !media.image) return null;
  const image = el("img", { class: "thumb", alt: "", loading: "lazy", decoding: "async", ...attributes });
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 40));
  image.src = `data:${data.media_types.image};base64,${media.image}`;
  return image;
}
const soundOf = (key) => (data.media[key] && data.media[key].audio ? `data:${data.media_types.audio};base64,${data.media[key].audio}` : null);
const isSound = Boolean(data.media_types && data.media_types.audio);

const player = document.createElement("audio");
let playing = null;
function play(key) {
  const source = soundOf(key);
  if (!source) return;
  const again = playing === key && !player.paused;
  player.pause();
  document.querySelectorAll("audio").forEach((other) => other.pause());
  if (again) return;
  playing = key;
  player.src = source;
  player.play().catch(() => {});
}

// A sample: [row in the data, label, label at the stage before, confidence, file], and of segments start and end.
const sampleOf = (key) => data.samples[key] || [null, null, null, null, null];
const spanOf = (key) => sampleOf(key).slice(5).map((second) => Number(second).toFixed(2)).join(" to ");
const nameOf = (key) => `${run.noun} ${sampleOf(key)[0]}${spanOf(key) && ` (${spanOf(key)} s)`}`;

const store = {
  read(name) { try { return JSON.parse(window.localStorage.getItem(name)); } catch { return null; } },
  write(name, content) { try { window.localStorage.setItem(name, JSON.stringify(content)); } catch { /* a page from a file may have none */ } },
};

const redrawn = [];
function onResize(draw) {
  redrawn.push(draw);
  draw();
}
let resizing = 0;
window.addEventListener("resize", () => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => redrawn.forEach((draw) => draw()));
});

const themes = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" };
const themeButton = document.getElementById("theme");
function setTheme(name) {
  const known = themes[name] ? name : "auto";
  if (known === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", known);
  themeButton.textContent = themes[known];
  themeButton.dataset.now = known;
  store.write("hf-plr-theme", known);
  redrawn.forEach((draw) => draw());
}
setTheme(store.read("hf-plr-theme"));
themeButton.addEventListener("click", () => {
  const names = Object.keys(themes);
  setTheme(names[(names.indexOf(themeButton.dataset.now) + 1) % names.length]);
});
const isDark = () => {
  const set = document.documentElement.getAttribute("data-theme");
  return set ? set === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
};
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redrawn.forEach((draw) => draw()));

// A cluster keeps its number from stage to stage, and with it its colour and shape.
function colourOf(id) {
  if (id === NOISE || id === null) return isDark() ? "#6b7280" : "#a3a7ae";
  const light = (isDark() ? 66 : 42) + ((id % 3) - 1) * 8;
  return `hsl(${Math.round((id * 137.508) % 360)} 68% ${light}%)`;
}
const swatch = (id) => el("span", { class: "swatch", "aria-hidden": "true", "data-cluster": id });
function paintSwatches(within = document) {
  within.querySelectorAll(".swatch").forEach((node) => { node.style.background = colourOf(Number(node.dataset.cluster)); });
}

// One stop of the Tab key for many nodes: the arrow keys go on from node to node, in rows as they are on the screen.
function rove(container, nodes) {
  nodes.forEach((node, i) => { node.tabIndex = i ? -1 : 0; });
  container.onkeydown = (event) => {
    const at = nodes.findIndex((node) => node.contains(event.target));
    const perRow = Math.max(1, nodes.filter((node) => node.offsetTop === nodes[0].offsetTop).length);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow }[event.key];
    if (at < 0 || step === undefined) return;
    event.preventDefault();
    const next = nodes[at + step];
    if (!next) return;
    nodes.forEach((node) => { node.tabIndex = node === next ? 0 : -1; });
    next.focus();
  };
}
