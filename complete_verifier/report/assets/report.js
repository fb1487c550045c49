"use strict";
(() => {
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  const table = document.getElementById("instances");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const headers = Array.from(table.tHead.rows[0].cells);
  const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  // A cell with data-v is a number; an empty one is not known and comes last either way.
  const compare = (a, b, column, sign) => {
    const left = a.cells[column], right = b.cells[column];
    if (left.dataset.v === undefined) return sign * order.compare(left.textContent, right.textContent);
    const none = (left.dataset.v === "") - (right.dataset.v === "");
    return none || sign * (Number(left.dataset.v) - Number(right.dataset.v)) || 0;
  };
  headers.forEach((header, column) => {
    header.firstElementChild.addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      rows.sort((a, b) => compare(a, b, column, sign));
      body.append(...rows);
    });
  });

  const filter = document.getElementById("filter");
  const chips = Array.from(document.querySelectorAll(".chip"));
  const shown = document.getElementById("shown");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kinds = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.kind);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || (kinds.length > 0 && !kinds.includes(row.dataset.kind));
      if (!row.hidden) count += 1;
    }
    shown.textContent = count === rows.length ? `${count} instances` : `${count} of ${rows.length} instances`;
  };
  filter.addEventListener("input", apply);
  chips.forEach((chip) => chip.addEventListener("click", () => {
    chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") === "true" ? "false" : "true");
    apply();
  }));
  apply();
})();
