// On a small screen the sections are a menu behind a button; on a large one they stand in the bar.
const menu = document.getElementById("menu");
const setMenu = (isOpen) => menu.setAttribute("aria-expanded", String(isOpen));
menu.addEventListener("click", () => setMenu(menu.getAttribute("aria-expanded") !== "true"));
document.getElementById("nav").addEventListener("click", (event) => { if (event.target.closest("a")) setMenu(false); });
document.addEventListener("click", (event) => { if (!event.target.closest(".top")) setMenu(false); });
document.querySelector(".top").addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || menu.getAttribute("aria-expanded") !== "true") return;
  setMenu(false);
  menu.focus();
});
