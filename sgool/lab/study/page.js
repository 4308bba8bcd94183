"use strict";
// Every answer is kept in this browser at once, and sent to the server. What could not be sent is sent later, or saved.

const data = JSON.parse(document.getElementById("data").textContent);
const pairs = new Map([...data.pairs, ...data.checks].map((pair) => [pair.id, pair]));
const questions = [
  { name: "quality", what: "Which picture is of better quality?", hint: "Look at how well it is made; what it shows does not matter." },
  { name: "agreement", what: "Which picture fits this text better?" },
];
const place = `sgool-study-${data.study}`;
const byId = (id) => document.getElementById(id);
let ready = false; // both pictures are there, and no choice is being shown
let sending = false;
let forgetful = false;
const state = remembered() ?? begun();

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(place));
  } catch {
    return null;
  }
}

function remember() {
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch {
    forgetful = true; // storage is blocked or full
  }
}

// order: [id, whether the second picture is on the left] of each pair. at: questions done. until: pairs of this session.
function begun() {
  const visitor = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const checks = shuffled(data.checks);
  const order = [];
  const left = shuffled(data.pairs);
  while (left.length) {
    const some = left.splice(0, data.every);
    if (checks.length) some.splice(Math.floor(Math.random() * Math.min(some.length, 5)), 0, checks.pop());
    order.push(...some.map((pair) => [pair.id, Math.random() < 0.5]));
  }
  return { visitor, order, at: 0, until: Math.min(data.session, order.length), started: false, answers: {}, unsent: [] };
}

function shuffled(list) {
  const mixed = [...list];
  for (let i = mixed.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [mixed[i], mixed[j]] = [mixed[j], mixed[i]];
  }
  return mixed;
}

function show() {
  const part = !state.started ? "start" : state.at < 2 * state.until ? "ask" : "end";
  for (const each of ["start", "ask", "end"]) byId(each).hidden = each !== part;
  byId("forgetful").hidden = !forgetful;
  if (part === "start") byId("begin").focus();
  if (part === "ask") ask();
  if (part === "end") end();
}

function setReady(value) {
  ready = value;
  byId("pictures").setAttribute("aria-busy", !value);
}

function now() {
  const [id, swapped] = state.order[state.at >> 1];
  return { pair: pairs.get(id), swapped, question: questions[state.at % 2] };
}

function files(number) {
  const [id, swapped] = state.order[number];
  const [first, second] = pairs.get(id).pictures.map((name) => `pictures/${name}`);
  return swapped ? [second, first] : [first, second];
}

async function ask() {
  const { pair, swapped, question } = now();
  setReady(false);
  const at = state.at;
  byId("what").textContent = question.what;
  byId("text").textContent = question.hint ?? pair.text;
  byId("text").className = question.hint ? "soft" : "quote";
  byId("bar").max = 2 * state.until;
  byId("bar").value = at;
  byId("count").textContent = `${(at >> 1) + 1} of ${state.until}`;
  byId("back").disabled = at === 0;
  byId("broken").hidden = true;
  press(shownAs(state.answers[pair.id]?.[question.name], swapped));
  document.activeElement?.blur(); // a choice must not stay in the focus of the next question
  const images = [...document.querySelectorAll(".picture img")];
  try {
    await Promise.all(files(at >> 1).map((file, side) => load(images[side], file)));
  } catch {
    if (at === state.at) byId("broken").hidden = false;
    return;
  }
  if (at !== state.at) return;
  setReady(true);
  if ((at >> 1) + 1 < state.until) for (const file of files((at >> 1) + 1)) new Image().src = file;
}

async function load(image, file) {
  if (image.getAttribute("src") !== file || !image.naturalWidth) image.src = file;
  await image.decode();
}

// What a choice of the pair's first or second picture is on the screen, and the other way round.
function shownAs(choice, swapped) {
  if (choice === undefined || choice === "same") return choice;
  return (choice === "first") !== swapped ? "left" : "right";
}

function meant(side, swapped) {
  if (side === "same") return side;
  return (side === "left") !== swapped ? "first" : "second";
}

function press(side) {
  for (const each of ["left", "right", "same"]) byId(each).setAttribute("aria-pressed", each === side);
}

function choose(side) {
  if (!ready) return;
  setReady(false);
  const { pair, swapped, question } = now();
  const answer = (state.answers[pair.id] ??= { left: swapped ? "second" : "first" });
  answer[question.name] = meant(side, swapped);
  if (answer.quality && answer.agreement && !state.unsent.includes(pair.id)) state.unsent.push(pair.id);
  state.at += 1;
  remember();
  send();
  press(side);
  setTimeout(show, 180); // long enough to see what was chosen
}

function back() {
  if (state.at === 0 || (state.at < 2 * state.until && !ready && byId("broken").hidden)) return;
  state.at -= 1;
  remember();
  show();
}

function told(id) {
  return { visitor: state.visitor, pair: id, ...state.answers[id] };
}

async function send() {
  if (sending) return;
  sending = true;
  while (state.unsent.length) {
    const body = JSON.stringify(told(state.unsent[0]));
    let reply;
    try {
      reply = await fetch("answers", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    } catch {
      break;
    }
    if (reply.status === 429) {
      await new Promise((done) => setTimeout(done, 2000));
      continue;
    }
    if (!reply.ok) break;
    if (body === JSON.stringify(told(state.unsent[0]))) state.unsent.shift(); // not changed meanwhile
    remember();
  }
  sending = false;
  if (!byId("end").hidden) end();
}

function end() {
  const left = state.order.length - state.until;
  const count = state.unsent.length;
  byId("sent").textContent = count === 0 ? "All your answers have been sent." : sending ? "Sending your answers ..."
    : `${count} of your answers could not be sent.`;
  byId("unsent").hidden = count === 0 || sending;
  byId("rest").hidden = left === 0;
  byId("more").textContent = `${Math.min(left, data.session)} more`;
}

function save() {
  const answers = Object.keys(state.answers).map(told).filter((each) => each.quality && each.agreement);
  const file = new Blob([JSON.stringify({ study: data.study, answers })], { type: "application/json" });
  byId("save").href = URL.createObjectURL(file);
  byId("save").download = `answers-${state.visitor.slice(0, 8)}.json`;
}

const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "same", 0: "same" };

document.addEventListener("keydown", (event) => {
  if (byId("ask").hidden || event.ctrlKey || event.altKey || event.metaKey) return;
  const back_ = event.key === "Backspace" || event.key === "ArrowUp";
  if (!back_ && !(event.key in KEYS)) return;
  event.preventDefault();
  if (event.repeat) return; // a key that is held is one answer
  if (back_) back();
  else choose(KEYS[event.key]);
});

for (const side of ["left", "right", "same"]) byId(side).addEventListener("click", () => choose(side));
byId("begin").addEventListener("click", () => { state.started = true; remember(); show(); });
byId("back").addEventListener("click", back);
byId("review").addEventListener("click", back);
byId("again").addEventListener("click", () => { for (const image of document.querySelectorAll(".picture img")) image.removeAttribute("src"); ask(); });
byId("retry").addEventListener("click", () => { send(); end(); });
byId("save").addEventListener("click", save);
byId("more").addEventListener("click", () => { state.until = Math.min(state.order.length, state.until + data.session); remember(); show(); });
addEventListener("online", send);
addEventListener("storage", (event) => { if (event.key === place) location.reload(); }); // answered in another tab

remember();
show();
send();
