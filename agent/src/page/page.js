// Keeps the light (and where they are shown, the details) true without a reload.
const main = document.querySelector("main");
const details = main.dataset.details === "true";
const byId = (id) => document.getElementById(id);

function show(light) {
  byId("lamp").className = `lamp ${light.colour}`;
  if (byId("word").textContent !== light.word) byId("word").textContent = light.word;
  if (details) byId("message").textContent = light.message;
  document.title = `${light.word} – ${document.querySelector(".serial").textContent}`;
}

function row(list, name, state, error) {
  const term = document.createElement("dt");
  term.textContent = name;
  const value = document.createElement("dd");
  value.textContent = state;
  if (error) {
    const small = document.createElement("small");
    small.textContent = error;
    value.append(small);
  }
  list.append(term, value);
}

const steps = { "register": 1, "relay": 2, "press": 3, "phone-home": 4, "dispatch": 5, "connect": 6, "tunnel": 7, "add": 8 };
const words = { unknown: "Not looked at yet", good: "Good", bad: "Bad" };

function showDetails(status) {
  const list = document.createElement("dl");
  row(list, "Step", status.step ? `${steps[status.step]} ${status.step}` : "–");
  for (const one of [status.dispatcher, ...status.uplinks]) if (one) row(list, one.address, one.state, one.error);
  for (const one of status.cameras) row(list, `${one.name} (${one.address})`, words[one.state], one.error);
  const warnings = status.warnings.map((text) => {
    const warning = document.createElement("p");
    warning.className = "warning";
    warning.textContent = text;
    return warning;
  });
  byId("details").replaceChildren(...warnings, list);
}

async function refresh() {
  try {
    const answer = await fetch(details ? "/status" : "/light");
    if (!answer.ok) return;
    const status = await answer.json();
    show(details ? status.light : status);
    if (details) showDetails(status);
  } catch {
    show({ colour: "grey", word: "Agent not running", message: "This page's program does not answer." });
  }
}

byId("press").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    await fetch("/press", { method: "POST" });
  } finally {
    button.disabled = false;
    refresh();
  }
});

setInterval(refresh, 1000);
