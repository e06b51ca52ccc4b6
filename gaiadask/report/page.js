"use strict";
/* What the page does beyond being read: tables sort, the HR diagram names its stars. Without scripts everything is there but this. */

// Tables: the heads of single columns become buttons; rows of the body are sorted, those of the foot stay where they are.
const MISSING = /^[–\s]*$/;
const value = (cell) => {
  const text = cell.textContent.trim().replaceAll("\u202f", "").replace("−", "-");
  const number = /^(-?\d+(?:\.\d+)?)(?:·10(-?\d+))?(?![\w:.-])/.exec(text);
  return MISSING.test(text) ? null : number ? Number(number[1]) * 10 ** Number(number[2] ?? 0) : text;
};
const compare = (one, other) =>
  typeof one === typeof other && typeof one === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });

for (const table of document.querySelectorAll("table")) {
  if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
  const lines = [...table.tHead.rows];
  const heads = lines.flatMap((line, i) => [...line.cells].filter((head) => head.colSpan === 1 && i + head.rowSpan === lines.length));
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [value(row.cells[column]), row]);
      // What is missing comes last either way.
      rows.sort(([one], [other]) => (one === null) - (other === null) || (one === null ? 0 : sign * compare(one, other)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

// What scrolls sideways can be scrolled by keyboard.
const scrollers = document.querySelectorAll(".scroll, .pan, pre");
const reach = () => {
  for (const part of scrollers) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
};
addEventListener("resize", reach);
addEventListener("load", reach);
addEventListener("toggle", reach, true); // what was folded away has its width now

// The HR diagram: the star nearest to the pointer is named and ringed in every panel; arrow keys step from the bluest to the reddest.
const content = document.getElementById("hr-stars");
if (content) {
  const { series, panels, x, y, ids, places } = JSON.parse(content.textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const id = new BigUint64Array(bytes(ids));
  const at = places.map((text) => new Int16Array(bytes(text))); // all colours, then all magnitudes, in mmag
  const UNKNOWN = -32768;
  const REACH_PX = 14;
  const part = document.getElementById("hr-diagram");
  const picture = part.querySelector("img");
  const label = document.createElement("output");
  const rings = panels.map(() => Object.assign(document.createElement("span"), { className: "ring", hidden: true }));
  label.hidden = true;
  part.append(...rings, label);
  part.tabIndex = 0;
  let chosen = -1;
  let steps = null;

  const known = (kind, star) => at[kind][star] !== UNKNOWN && at[kind][id.length + star] !== UNKNOWN;
  const share = (number, [from, to]) => (number / 1000 - from) / (to - from);
  const place = ({ series: kind, box }, star) => [
    (box[0] + box[2] * share(at[kind][star], x)) * picture.clientWidth,
    (box[1] + box[3] * share(at[kind][id.length + star], y)) * picture.clientHeight,
  ];
  const magnitude = (number) => (number / 1000).toFixed(3).replace("-", "−");
  const show = (star, panel) => {
    chosen = star;
    panels.forEach((each, i) => {
      rings[i].hidden = !known(each.series, star);
      const [left, top] = place(each, star);
      Object.assign(rings[i].style, { left: `${left}px`, top: `${top}px` });
    });
    const lines = series.map((name, kind) =>
      known(kind, star) ? `${name}: BP − RP ${magnitude(at[kind][star])}, M_G ${magnitude(at[kind][id.length + star])}` : `${name}: unknown`);
    label.replaceChildren(Object.assign(document.createElement("b"), { textContent: `source_id ${id[star]}` }), ...lines.flatMap((line) => [document.createElement("br"), line]));
    label.hidden = false;
    const [left, top] = place(panel, star);
    const before = left > picture.clientWidth / 2;
    Object.assign(label.style, {
      left: before ? "auto" : `${left + 12}px`,
      right: before ? `${part.clientWidth - left + 12}px` : "auto",
      top: `${Math.min(top + 10, picture.clientHeight - label.offsetHeight - 4)}px`,
    });
  };
  const hide = () => {
    label.hidden = true;
    for (const ring of rings) ring.hidden = true;
  };
  picture.addEventListener("pointermove", (event) => {
    const { left, top, width, height } = picture.getBoundingClientRect();
    const [h, v] = [event.clientX - left, event.clientY - top];
    const inside = ([x0, y0, w, t]) => h >= x0 * width && h <= (x0 + w) * width && v >= y0 * height && v <= (y0 + t) * height;
    const panel = panels.find((each) => inside(each.box));
    if (!panel) return;
    let nearest = -1;
    let least = REACH_PX ** 2;
    for (let star = 0; star < id.length; star++) {
      if (!known(panel.series, star)) continue;
      const [l, t] = place(panel, star);
      const apart = (l - h) ** 2 + (t - v) ** 2;
      if (apart < least) [nearest, least] = [star, apart];
    }
    if (nearest >= 0) show(nearest, panel);
  });
  part.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    steps ??= [...id.keys()].sort((one, other) => at[0][one] - at[0][other]);
    const now = steps.indexOf(chosen);
    show(steps[now < 0 ? 0 : (now + step + steps.length) % steps.length], panels[0]);
  });

  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Download these stars (CSV)";
  button.addEventListener("click", () => {
    const head = ["source_id", ...series.flatMap((name) => [`bp_rp_${name}`, `m_g_${name}`])];
    const field = (kind, index) => (at[kind][index] === UNKNOWN ? "" : (at[kind][index] / 1000).toFixed(3));
    const rows = [...id.keys()].map((star) => [id[star], ...series.flatMap((_, kind) => [field(kind, star), field(kind, id.length + star)])]);
    const file = new Blob([[head, ...rows].map((row) => row.join(",")).join("\n"), "\n"], { type: "text/csv" });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: `${document.body.dataset.run}-hr.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
  document.getElementById("hr-download").append(button);
}
