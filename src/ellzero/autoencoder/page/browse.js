// Draws the list of latents and, when one is chosen, its examples. Every word enters as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const unpack = (text, Kind) => {
    if (text === null) return null;
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Kind(bytes.buffer);
  };
  const words = data.words;
  const tokens = unpack(data.tokens, Int32Array), fires = unpack(data.fires, Int32Array);
  const largest = unpack(data.largest, Float32Array), counts = unpack(data.histograms, Int32Array);
  const first = unpack(data.first, Int32Array), start = unpack(data.start, Int32Array);
  const length = unpack(data.length, Uint8Array), values = unpack(data.values, Int8Array);
  const promoted = unpack(data.promoted, Int32Array), promotion = unpack(data.promotion, Float32Array);
  const latents = fires.length, size = 50;
  const offset = new Int32Array(length.length + 1);
  length.forEach((n, e) => { offset[e + 1] = offset[e] + n; });
  const find = (id) => document.getElementById(id);
  const visible = (word) => word.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  const number = (x) => (x === 0 ? "0" : Number(x.toPrecision(3)).toString());
  const density = (latent) => {
    const share = 100 * fires[latent] / tokens.length;
    return share > 0 && share < 0.01 ? "<0.01 %" : `${share.toFixed(2)} %`;
  };

  function element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    Object.assign(made, properties);
    made.append(...children);
    return made;
  }

  // where in the example the latent is largest
  function peak(e) {
    let best = 0;
    for (let i = 1; i < length[e]; i++) {
      if (Math.abs(values[offset[e] + i]) > Math.abs(values[offset[e] + best])) best = i;
    }
    return best;
  }

  const peaks = Array.from(length, (_, e) => tokens[start[e] + peak(e)]);

  function peakWords(latent) {
    return [...new Set(peaks.slice(first[latent], first[latent + 1]))].map((t) => words[t]);
  }

  let order = [], page = 0, chosen = null;

  function arrange() {
    const by = find("sort").value, sign = find("rising").checked ? 1 : -1, dead = find("dead").checked;
    const wanted = find("word").value.trim().toLowerCase();
    const key = by === "density" ? fires : largest;
    order = [];
    for (let i = 0; i < latents; i++) {
      if (!dead && fires[i] === 0) continue;
      if (wanted && !peakWords(i).some((word) => word.toLowerCase().includes(wanted))) continue;
      order.push(i);
    }
    if (by === "number") { if (sign < 0) order.reverse(); }
    else order.sort((a, b) => sign * (key[a] - key[b]) || a - b);
    page = 0;
    list();
  }

  function list() {
    const pages = Math.max(1, Math.ceil(order.length / size));
    find("back").disabled = page === 0;
    find("on").disabled = page >= pages - 1;
    find("where").textContent = `${order.length} latents, page ${page + 1} of ${pages}`;
    find("list").replaceChildren(...order.slice(page * size, (page + 1) * size).map((latent) => {
      const button = element("button", { type: "button", textContent: latent });
      button.addEventListener("click", () => { location.hash = `latent=${latent}`; });
      const row = element("tr", { className: latent === chosen ? "chosen" : "" },
        element("td", {}, button), element("td", { textContent: density(latent) }),
        element("td", { textContent: number(largest[latent]) }),
        element("td", { className: "text", textContent: peakWords(latent).slice(0, 4).map(visible).join(" · ") }));
      row.dataset.latent = latent;
      return row;
    }));
  }

  function histogram(latent) {
    const bars = counts.subarray(latent * data.bins, (latent + 1) * data.bins), most = Math.max(...bars);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${data.bins} 10`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `How often activations of each size occur, from 0 to ${number(largest[latent])}`);
    bars.forEach((count, i) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      // by the logarithm, so that rare large activations are seen
      const high = count ? 10 * Math.log1p(count) / Math.log1p(most) : 0;
      for (const [name, value] of [["x", i + 0.05], ["y", 10 - high], ["width", 0.9], ["height", high]]) {
        bar.setAttribute(name, value);
      }
      const told = document.createElementNS("http://www.w3.org/2000/svg", "title");
      const low = largest[latent] * i / data.bins, up = largest[latent] * (i + 1) / data.bins;
      told.textContent = `${number(low)} to ${number(up)}: ${count}`;
      bar.append(told);
      svg.append(bar);
    });
    return svg;
  }

  function example(e, latent) {
    const line = element("p", { className: "example" }), top = peak(e);
    for (let i = 0; i < length[e]; i++) {
      const share = values[offset[e] + i] / 127, word = visible(words[tokens[start[e] + i]]);
      const span = element("span", { textContent: word });
      if (share !== 0) {
        const colour = share > 0 ? "--fire" : "--cold";
        span.style.background = `color-mix(in srgb, var(${colour}) ${Math.round(15 + 75 * Math.abs(share))}%, transparent)`;
        span.title = number(share * largest[latent]);
      }
      if (i === top) span.className = "peak";
      line.append(span);
    }
    return line;
  }

  function logits(latent) {
    if (promoted === null) return [element("p", { className: "soft",
      textContent: "No unembedding of this width follows, so no token is promoted directly." })];
    const width = promoted.length / latents, half = width / 2, from = latent * width;
    const some = (low) => element("ul", { className: "words" }, ...Array.from({ length: half }, (_, i) => {
      const at = from + low + i;
      return element("li", {}, visible(words[promoted[at]]), element("small", { textContent: number(promotion[at]) }));
    }));
    return [element("h3", { textContent: "Tokens it promotes" }), some(0),
            element("h3", { textContent: "Tokens it suppresses" }), some(half)];
  }

  function show(latent) {
    chosen = latent;
    const parts = [element("h2", { textContent: `Latent ${latent}` })];
    if (fires[latent] === 0) {
      parts.push(element("p", { textContent: "Active on no token of these texts." }));
    } else {
      parts.push(element("p", { className: "soft",
        textContent: `active on ${fires[latent]} tokens (${density(latent)}), at most ${number(largest[latent])}` }),
        element("h3", { textContent: "Sizes of its activations" }), histogram(latent),
        element("p", { className: "soft", textContent: `0 to ${number(largest[latent])}; heights are logarithmic` }));
    }
    parts.push(...logits(latent));
    if (fires[latent] > 0) {
      parts.push(element("h3", { textContent: "Strongest examples" }));
      for (let e = first[latent]; e < first[latent + 1]; e++) parts.push(example(e, latent));
    }
    const detail = find("detail");
    detail.replaceChildren(...parts);
    detail.dataset.latent = latent;
    find("number").value = latent;
    for (const row of find("list").children) row.className = Number(row.dataset.latent) === latent ? "chosen" : "";
  }

  function follow() {
    const asked = /^#latent=(\d+)$/.exec(location.hash);
    const latent = asked ? Number(asked[1]) : order[0] ?? 0;
    if (latent < latents) show(latent);
  }

  for (const id of ["sort", "rising", "dead"]) find(id).addEventListener("change", arrange);
  find("word").addEventListener("input", arrange);
  find("number").max = latents - 1;
  find("number").addEventListener("change", (event) => { location.hash = `latent=${event.target.value}`; });
  find("choice").addEventListener("submit", (event) => event.preventDefault());
  find("back").addEventListener("click", () => { page -= 1; list(); });
  find("on").addEventListener("click", () => { page += 1; list(); });
  window.addEventListener("hashchange", follow);
  arrange();
  follow();
  document.documentElement.dataset.drawn = "yes";
})();
