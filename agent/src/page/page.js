// Keeps what is shown true without a reload: the page is fetched again, and its live part replaced where
// it has changed. Without JavaScript the page works too, as a form and with reload.
const live = document.getElementById("live");
const button = document.querySelector("button");

function offline() {
  document.getElementById("lamp").className = "lamp grey";
  document.getElementById("word").textContent = "Agent not running";
}

async function refresh() {
  try {
    const answer = await fetch(location.pathname);
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("live");
    document.title = page.title;
    for (const part of ["light", "details"]) {
      const [now, then] = [live.querySelector(`.${part}`), fresh.querySelector(`.${part}`)];
      if (now && then && now.innerHTML !== then.innerHTML) now.innerHTML = then.innerHTML;
    }
  } catch {
    offline();
  }
}

document.getElementById("press").addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  try {
    await fetch("/press", { method: "POST" });
    await refresh();
  } catch {
    offline();
  } finally {
    button.disabled = false;
  }
});

setInterval(refresh, 1000);
