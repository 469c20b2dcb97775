"use strict";
// Shows the trials, keeps the answers in this browser, saves them as a file. Captions are only ever set as text.

const shown = JSON.parse(document.getElementById("shown").textContent);
const QUESTIONS = ["quality", "alignment"];
const ANSWERS = [["left", "I prefer the left set"], ["indifferent", "I am indifferent"], ["right", "I prefer the right set"]];
const element = (id) => document.getElementById(id);

let session = null; // {rater, kind, started, answers: {trial: {quality, alignment, seconds}}}
let order = []; // this rater's trials
let place = 0;
let since = 0; // when the trial was shown

// ---- where answers are kept

function storageKey(rater, kind) {
  return `human-evaluation/${shown.study}/${JSON.stringify([rater, kind])}`;
}

function keep() {
  try {
    localStorage.setItem(storageKey(session.rater, session.kind), JSON.stringify(session));
  } catch (error) {
    warn("This browser keeps nothing: save a copy of your answers before you close the page.");
    window.onbeforeunload = (event) => event.preventDefault();
  }
}

function kept(rater, kind) {
  try {
    const found = JSON.parse(localStorage.getItem(storageKey(rater, kind)));
    return found && typeof found.answers === "object" ? found : null;
  } catch (error) {
    return null;
  }
}

function warn(words) {
  element("trouble").textContent = words;
  element("trouble").hidden = false;
}

// ---- the order of trials: shuffled for each rater, the same whenever they come back

function randomNumbers(seed) {
  let state = 2166136261;
  for (const sign of seed) state = Math.imul(state ^ sign.codePointAt(0), 16777619);
  return () => { // mulberry32
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(trials, seed) {
  const random = randomNumbers(seed);
  const result = [...trials];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}

function trialsOf(kind) {
  return kind === null ? shown.trials : shown.trials.filter((trial) => trial.kind === kind);
}

// ---- the three views

function view(id) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== id;
  window.scrollTo(0, 0);
}

function chosenKind() {
  return element("kind").value === "" ? null : shown.kinds[Number(element("kind").value)];
}

function fillStart() {
  const add = (value, words) => element("kind").add(new Option(words, value));
  if (shown.kinds.length > 1) add("", `Everything (${shown.trials.length} pairs)`);
  shown.kinds.forEach((kind, i) => add(shown.kinds.length > 1 ? i : "", `${kind || "Everything"} (${trialsOf(kind).length} pairs)`));
  element("part").hidden = shown.kinds.length < 2;
  const asked = shown.kinds.findIndex((kind) => new URL(`#${kind}`, location.href).hash === location.hash && kind);
  if (asked >= 0 && shown.kinds.length > 1) element("kind").value = String(asked);
}

function tellResumed() {
  const found = kept(element("rater").value.trim(), chosenKind());
  const count = found ? Object.values(found.answers).filter(complete).length : 0;
  element("resumed").textContent = count ? `Welcome back: ${count} of ${trialsOf(chosenKind()).length} pairs are answered.` : "";
}

function start() {
  const rater = element("rater").value.trim();
  if (!rater) return;
  const kind = chosenKind();
  session = kept(rater, kind) || { rater, kind, started: new Date().toISOString(), answers: {} };
  order = shuffled(trialsOf(kind), `${shown.study} ${rater}`);
  element("trouble").hidden = true;
  keep();
  const open = order.findIndex((trial) => !complete(session.answers[trial.id]));
  open < 0 ? finish() : show(open);
}

function complete(answer) {
  return Boolean(answer) && QUESTIONS.every((question) => answer[question]);
}

function show(index) {
  place = index;
  since = performance.now();
  const trial = order[place];
  view("trial");
  element("place").textContent = `Pair ${place + 1} of ${order.length}`;
  element("progress").max = order.length;
  element("caption").textContent = trial.caption;
  for (const side of ["left", "right"]) fillSet(side, trial[side]);
  for (const question of QUESTIONS) {
    for (const input of document.querySelectorAll(`input[name=${question}]`)) {
      input.checked = input.value === (session.answers[trial.id] || {})[question];
    }
  }
  element("back").disabled = place === 0;
  update();
  element("place").focus();
  const after = order[place + 1];
  if (after) for (const name of [...after.left, ...after.right]) new Image().src = `pictures/${name}`;
}

function fillSet(side, names) {
  const rows = Math.max(1, Math.round(Math.sqrt(names.length / 2)));
  const box = element(side);
  box.style.setProperty("--rows", rows);
  box.style.setProperty("--columns", Math.ceil(names.length / rows));
  box.replaceChildren(...names.map((name, i) => {
    const image = new Image();
    image.alt = `Picture ${i + 1} of ${names.length} of the ${side} set`;
    image.onload = () => document.documentElement.style.setProperty("--aspect", image.naturalWidth / image.naturalHeight);
    image.onerror = () => warn("A picture is missing: keep the folder \"pictures\" beside this page.");
    image.src = `pictures/${name}`;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Enlarge";
    button.append(image);
    button.onclick = () => enlarge(image);
    return button;
  }));
}

function enlarge(image) {
  const large = element("large").querySelector("img");
  large.src = image.src;
  large.alt = image.alt;
  element("large").showModal();
}

function update() {
  const answer = session.answers[order[place].id];
  const open = QUESTIONS.find((question) => !(answer || {})[question]);
  for (const question of QUESTIONS) {
    document.querySelector(`fieldset[data-question=${question}]`).classList.toggle("current", question === open);
  }
  element("progress").value = order.filter((trial) => complete(session.answers[trial.id])).length;
  element("next").disabled = Boolean(open);
}

function answer(question, value) {
  const trial = order[place].id;
  const given = session.answers[trial] || (session.answers[trial] = { seconds: 0 });
  given[question] = value;
  given.seconds += (performance.now() - since) / 1000;
  since = performance.now();
  keep();
  update();
}

function next() {
  if (element("next").disabled) return;
  place + 1 < order.length ? show(place + 1) : finish();
}

function back() {
  if (place > 0) show(place - 1);
}

function finish() {
  view("end");
  element("summary").textContent = `You have answered all ${order.length} pairs.`;
  element("thanks").focus();
}

function save() {
  const answers = order.filter((trial) => complete(session.answers[trial.id])).map((trial) => {
    const { quality, alignment, seconds } = session.answers[trial.id];
    return { trial: trial.id, quality, alignment, seconds: Math.round(seconds * 10) / 10 };
  });
  const ratings = {
    format: shown.format, study: shown.study, rater: session.rater, kind: session.kind, started: session.started,
    saved: new Date().toISOString(), complete: answers.length === order.length, answers,
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(ratings, null, 2) + "\n"], { type: "application/json" }));
  const words = ["ratings", session.rater, session.kind || ""].map((word) => word.replace(/[^\p{L}\p{N}]+/gu, "-")).filter(Boolean);
  link.download = `${words.join("_")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- keys and clicks

function onKey(event) {
  const busy = event.ctrlKey || event.altKey || event.metaKey || element("large").open || element("trial").hidden;
  if (busy || !element("shortcuts").checked) return;
  const number = ["1", "2", "3"].indexOf(event.key);
  if (number >= 0) {
    const focused = document.activeElement.closest("fieldset");
    const open = document.querySelector("fieldset.current") || focused || document.querySelector("fieldset[data-question=alignment]");
    const input = open.querySelectorAll("input")[number];
    input.checked = true;
    answer(open.dataset.question, input.value);
  } else if (event.key === "Enter" && !document.activeElement.closest("button")) {
    next();
  } else if (event.key === "p" || event.key === "P") {
    back();
  } else {
    return;
  }
  event.preventDefault();
}

for (const fieldset of document.querySelectorAll("fieldset")) {
  const question = fieldset.dataset.question;
  ANSWERS.forEach(([value, words], i) => {
    const label = element("answer").content.cloneNode(true);
    const input = label.querySelector("input");
    input.name = question;
    input.value = value;
    input.onchange = () => answer(question, value);
    label.querySelector("kbd").textContent = i + 1;
    label.querySelector(".words").textContent = words;
    fieldset.querySelector(".answers").append(label);
  });
}
element("who").onsubmit = (event) => { event.preventDefault(); start(); };
element("questions").onsubmit = (event) => event.preventDefault();
element("rater").oninput = tellResumed;
element("kind").onchange = tellResumed;
element("next").onclick = next;
element("back").onclick = back;
element("save").onclick = save;
element("save-now").onclick = save;
element("again").onclick = () => show(order.length - 1);
element("other").onclick = () => { view("start"); tellResumed(); };
element("shortcuts").onchange = () => document.body.classList.toggle("no-shortcuts", !element("shortcuts").checked);
element("large").onclick = (event) => { if (event.target.tagName !== "BUTTON") element("large").close(); };
document.addEventListener("keydown", onKey);
fillStart();
