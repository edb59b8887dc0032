// Runs before anything is drawn, so that the page never flashes in the wrong colours. The choice itself
// is in dom.js.
{
  const chosen = localStorage.getItem("homing-theme");
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}
