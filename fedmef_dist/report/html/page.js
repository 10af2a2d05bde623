"use strict";
// Values under the pointer, by keyboard too, and groups that can be left out. All text goes through textContent.
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart), plot = figure.querySelector("svg"), tip = figure.querySelector(".tip");
  const cursor = plot.querySelector(".cursor"), mark = plot.querySelector(".mark");
  let at = null;
  const shown = () => chart.series.filter((series) => !document.body.dataset.out?.split(" ").includes(String(series.group)));
  const line = (tag, text) => { const one = document.createElement(tag); one.textContent = text; tip.append(one); };
  const show = (series, place) => {
    at = [series, place];
    const [left, top, x] = series.points[place];
    cursor.setAttribute("x1", left); cursor.setAttribute("x2", left);
    mark.setAttribute("cx", left); mark.setAttribute("cy", top);
    tip.replaceChildren();
    line("b", chart.names.length ? chart.names[x] : `${chart.x}: ${x}`);
    line("span", chart.y);
    for (const other of shown()) {
      const point = other.points.find((one) => one[2] === x);
      if (point && (point[0] === left || other === series)) {
        line("span", `${other.name}: ${point[3]}${point[4] === undefined ? "" : ` ± ${point[4]}`}`);
      }
    }
    const width = plot.viewBox.baseVal.width, right = left < width / 2;  // the half in which the pointer is not
    const box = plot.getBoundingClientRect(), outside = figure.getBoundingClientRect();
    tip.style.top = `${box.top - outside.top}px`;
    tip.style.left = `${right ? box.width * left / width + 12 : 0}px`;
    tip.style.maxWidth = `${right ? box.width * (1 - left / width) - 12 : box.width * left / width - 12}px`;
    for (const part of [cursor, mark, tip]) part.removeAttribute(part === tip ? "hidden" : "visibility");
  };
  const hide = () => { at = null; tip.hidden = true; for (const part of [cursor, mark]) part.setAttribute("visibility", "hidden"); };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(), scale = plot.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = null, least = Infinity;
    for (const series of shown()) series.points.forEach(([left, top], place) => {
      const distance = (left - x) ** 2 + (0.3 * (top - y)) ** 2;
      if (distance < least) { least = distance; best = [series, place]; }
    });
    if (best) show(...best);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const all = shown();
    if (!all.length) return;
    let [series, place] = at && all.includes(at[0]) ? at : [all[0], -1];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], turn = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") { hide(); return; }
    if (event.key === "Home") place = 0;
    else if (event.key === "End") place = series.points.length - 1;
    else if (step) place += step;
    else if (turn) series = all[(all.indexOf(series) + turn + all.length) % all.length];
    else return;
    event.preventDefault();
    show(series, Math.max(0, Math.min(series.points.length - 1, place)));
  });
}
for (const strip of document.querySelectorAll("svg[data-strip]")) {
  const { starts, values, rounds } = JSON.parse(strip.dataset.strip), out = document.getElementById(strip.dataset.out);
  strip.addEventListener("pointermove", (event) => {
    const box = strip.getBoundingClientRect(), round = 1 + Math.floor(rounds * (event.clientX - box.left) / box.width);
    const place = starts.findLastIndex((start) => start <= round);
    if (place >= 0) out.textContent = `${strip.dataset.name}, round ${Math.min(round, rounds)}: density ${values[place]} %`;
  });
}
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const group = button.dataset.group, off = button.getAttribute("aria-pressed") === "true";
    const out = new Set((document.body.dataset.out ?? "").split(" ").filter(Boolean));
    if (off) out.add(group); else out.delete(group);
    document.body.dataset.out = [...out].join(" ");
    for (const twin of document.querySelectorAll(`.legend button[data-group="${group}"]`)) twin.setAttribute("aria-pressed", !off);
    for (const drawn of document.querySelectorAll(`.plot [data-group="${group}"]`)) drawn.toggleAttribute("data-off", off);
  });
}
