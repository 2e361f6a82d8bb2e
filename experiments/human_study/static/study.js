// Sends and receives messages without a reload, and keeps forms from being sent twice. The pages
// work without it.
"use strict";

// A page that the back button brings out of the browser's memory may be an old one.
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

for (const form of document.querySelectorAll("form:not(#say)")) {
  form.addEventListener("submit", () => {
    setTimeout(() => form.querySelectorAll("button").forEach((b) => { b.disabled = true; }), 0);
  });
}

const chat = document.getElementById("chat");
if (chat) {
  const talk = document.getElementById("talk");
  const say = document.getElementById("say");
  const text = document.getElementById("text");
  const send = say.querySelector("button");
  const finish = document.querySelector("#finish button");
  const hint = document.querySelector("#finish .hint");
  const typing = document.getElementById("typing");
  const error = document.getElementById("error");
  const { key, agent, you, writing } = chat.dataset;
  let count = talk.children.length;
  let sending = false;
  let asking = false;
  let lost = false;

  // The newest message, and where to answer it; of what does not fit at once, its beginning.
  const show = (item) => {
    say.scrollIntoView({ block: "nearest" });
    if (item.getBoundingClientRect().top < 0) item.scrollIntoView({ block: "start" });
  };

  const tell = (words) => { error.textContent = words; error.hidden = !words; };

  const add = (speaker, words) => {
    const item = document.createElement("li");
    item.className = speaker;
    for (const [name, content] of [["who", speaker === "agent" ? agent : you], ["say", words]]) {
      const part = document.createElement("span");
      part.className = name;
      part.textContent = content;
      item.append(part);
    }
    talk.append(item);
    count += 1;
    say.elements.place.value = count;
    show(item);
  };

  const wait = (waits) => {
    send.disabled = waits;
    if (waits) {
      finish.disabled = true;
      const dots = document.createElement("span");
      dots.className = "dots";
      dots.setAttribute("aria-hidden", "true");
      dots.append(...[1, 2, 3].map(() => document.createElement("i")));
      typing.replaceChildren(dots, ` ${writing}`);
    } else {
      typing.replaceChildren();
    }
  };

  const pause = (seconds) => new Promise((done) => { setTimeout(done, 1000 * seconds); });

  // The token stays with a message until it is kept: sent again after a lost connection it is one.
  const token = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

  const ask = async () => {
    if (asking) return;
    asking = true;
    for (;;) {
      try {
        const answer = await fetch(`/news?key=${key}&from=${count}`);
        if (answer.status === 403) { location.reload(); return; }
        if (!answer.ok) throw new Error("not now");
        const news = await answer.json();
        if (lost) tell("");
        lost = false;
        for (const message of news.messages) {
          if (message.number === count) add(message.speaker, message.text);
        }
        if (news.over) { location.reload(); return; }
        finish.disabled = !news.can_finish;
        if (news.can_finish) hint.hidden = true;
        wait(news.waits);
        if (!news.waits) break;
      } catch {
        lost = true;
        tell(chat.dataset.lost);
        await pause(2);
      }
    }
    asking = false;
    text.focus({ preventScroll: true });
  };

  say.addEventListener("submit", async (event) => {
    event.preventDefault();
    const words = text.value.trim();
    if (sending || send.disabled || !words) return;
    sending = true;
    wait(true);
    const body = new URLSearchParams(new FormData(say));
    for (;;) {
      try {
        const answer = await fetch("/say", { method: "POST", body, headers: { Accept: "application/json" } });
        if (answer.status === 429 || answer.status >= 500) throw new Error("not now");
        if (answer.status === 422) {
          wait(false);
          tell((await answer.json()).error);
        } else if (!answer.ok) {
          location.reload();
          return;
        } else {
          tell("");
          add("human", words);
          text.value = "";
          say.elements.form.value = token();
        }
        break;
      } catch {
        tell(chat.dataset.sending);
        await pause(2);
      }
    }
    sending = false;
    ask();
  });

  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      // Not with nothing in it, as after a second Enter: the browser would complain of that.
      if (!send.disabled && text.value.trim()) say.requestSubmit();
    }
  });

  if (send.disabled) ask(); else text.focus({ preventScroll: true });
  if (talk.children.length) show(talk.lastElementChild);
}
