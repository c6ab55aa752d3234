"use strict";
const $ = (id) => document.getElementById(id);
const SHOWN = 5;
const MOST = Number(document.querySelector("main").dataset.most);
let asked = 0;

function element(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function say(text, wrong = false) {
  $("state").textContent = text;
  $("state").classList.toggle("wrong", wrong);
}

const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });

function reasons(terms, most, caption) {
  const rows = terms.map((row) => {
    const bar = element("div");
    bar.style.width = `${(100 * row.score) / most}%`;
    return element("tr", {}, [
      element("th", { scope: "row", textContent: row.term }),
      element("td", {}, [bar]),
      element("td", { textContent: `${number(row.query)} × ${number(row.document)}` }),
      element("td", { textContent: number(row.score) }),
    ]);
  });
  return element("table", {}, [element("caption", { textContent: caption }), element("tbody", {}, rows)]);
}

function card(hit) {
  const name = hit.title || String(hit.id);
  const parts = [
    element("div", { className: "head" }, [
      element("h2", { textContent: `${hit.rank}. ${name}` }),
      element("span", { textContent: `${hit.title ? `${hit.id} · ` : ""}${number(hit.score)}` }),
    ]),
  ];
  if (hit.text) parts.push(element("p", { className: "text", textContent: hit.text + (hit.cut ? " …" : "") }));
  if (hit.terms.length) {
    const most = hit.terms[0].score;
    parts.push(reasons(hit.terms.slice(0, SHOWN), most, "Why: term, weight in the query × in the document, together"));
    const rest = hit.terms.slice(SHOWN);
    if (rest.length) {
      const summary = element("summary", { textContent: `${rest.length} more term${rest.length > 1 ? "s" : ""}` });
      parts.push(element("details", {}, [summary, reasons(rest, most, "")]));
    }
  }
  return element("li", {}, parts);
}

function draw(answer, k) {
  $("terms").replaceChildren(
    ...answer.terms.slice(0, 40).map((row) =>
      element("li", {}, [row.term, element("small", { textContent: number(row.weight) })])),
  );
  $("hits").replaceChildren(...answer.hits.map(card));
  const count = answer.hits.length;
  const found = count === 0 ? "nothing matches" : `the ${count} best document${count > 1 ? "s" : ""}`;
  const seconds = answer.encode_seconds + answer.search_seconds;
  say(`${found}; ${number(1000 * seconds)} ms, ${answer.algorithm}${answer.exact ? "" : ", not exact"}: ${answer.why}`);
  $("more").hidden = count < k || k >= MOST;
  $("more").onclick = () => search(answer.query, Math.min(MOST, k + 20));
}

async function search(text, k = Math.min(10, MOST)) {
  const mine = ++asked;
  say("searching …");
  let answer;
  try {
    const response = await fetch(`/api/search?${new URLSearchParams({ q: text, k })}`);
    answer = await response.json();
  } catch {
    answer = { error: "the service does not answer" };
  }
  if (mine !== asked) return;
  if (answer.error) {
    say(answer.error, true);
    $("terms").replaceChildren();
    $("hits").replaceChildren();
    $("more").hidden = true;
  } else {
    draw(answer, k);
  }
}

function fromAddress() {
  const text = new URLSearchParams(location.search).get("q") || "";
  $("q").value = text;
  if (text) search(text);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("q").value.trim();
  if (!text) return;
  history.pushState(null, "", `/?${new URLSearchParams({ q: text })}`);
  search(text);
});
window.addEventListener("popstate", fromAddress);
fromAddress();
