"use strict";
// Search, order and sort. Without this script everything is shown, in the order of the file.
(() => {
  const numberIn = (text) => {
    const number = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(number) ? null : number;
  };

  const compare = (a, b) => {
    const [x, y] = [numberIn(a), numberIn(b)];
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return x === null ? 1 : -1;
    return a.localeCompare(b);
  };

  const sortBy = (table, column, heading) => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const text = (row) => row.cells[column].textContent;
    body.append(...[...body.rows].sort((a, b) => (ascending ? 1 : -1) * compare(text(a), text(b))));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sortBy(table, column, heading));
      heading.append(button);
    });
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not(.data)")) details.open = true;
  });

  const finder = document.querySelector(".finder");
  if (!finder) return;
  const [search, kind, order, unfold, found] = ["search", "kind", "order", "unfold", "found"].map((id) => document.getElementById(id));
  const samples = [...document.querySelectorAll(".sample")];
  const texts = new Map(samples.map((sample) => [sample, sample.textContent.toLowerCase()]));
  finder.hidden = false;

  const refresh = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const sample of samples) {
      const fits = (!kind?.value || sample.dataset.kind === kind.value) && words.every((word) => texts.get(sample).includes(word));
      sample.hidden = !fits;
      shown += fits;
    }
    found.textContent = `${shown} of ${samples.length}`;
  };

  const reorder = () => {
    const sign = { up: 1, down: -1 }[order.value] || 0;
    const rate = (sample) => numberIn(sample.dataset.rate);
    const key = (a, b) => (rate(a) === null) - (rate(b) === null) || sign * (rate(a) - rate(b));
    document.getElementById("list").append(...(sign ? [...samples].sort(key) : samples));
  };

  search.addEventListener("input", refresh);
  kind?.addEventListener("change", refresh);
  order?.addEventListener("change", reorder);
  unfold.addEventListener("click", () => {
    const open = unfold.textContent === "Open all";
    for (const sample of samples) sample.open = open;
    unfold.textContent = open ? "Close all" : "Open all";
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || /INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) return;
    event.preventDefault();
    search.focus();
  });
  refresh();
})();
