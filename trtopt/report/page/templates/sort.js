"use strict";
// Buttons in the heads of tables sort the rows: by number where the cells are numbers with units, and by text otherwise.
{
  const UNITS = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9, k: 1e3, M: 1e6, G: 1e9, identical: Infinity };
  const value = (row, column) => {
    const text = (row.cells[column]?.textContent ?? "").trim();
    if (text === "identical") return Infinity;
    const match = /^([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*(\S*)/i.exec(text);
    return match ? parseFloat(match[1].replaceAll(",", "")) * (UNITS[match[2]] ?? 1) : text.toLowerCase();
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return 0;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return typeof a === typeof b ? a.localeCompare(b) : typeof a === "number" ? -1 : 1;
  };
  const sort = (table, heads, column) => {
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
    const filled = rows.filter(([key]) => key !== "").sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
    table.tBodies[0].append(...filled.concat(rows.filter(([key]) => key === "")).map(([, row]) => row));
  };
  for (const table of document.querySelectorAll("main table:not([data-fixed])")) {
    if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.textContent.trim() || head.querySelector(".hidden")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, heads, column));
      head.append(button);
    });
  }
}
