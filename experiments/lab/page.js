const all = (root, what) => [...root.querySelectorAll(what)];
const figure = text => { const plain = text.replace(/−/g, "-").replace(/,/g, "");
  return /^(< )?[-+]?\d/.test(plain) ? parseFloat(plain.replace("< ", "")) : NaN; };
for (const table of all(document, "table.sortable")) all(table, "thead th").forEach((head, column) => {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const up = head.getAttribute("aria-sort") != "ascending", body = table.tBodies[0], shown = row =>
      row.cells[column].textContent.trim();
    const [empty, full] = [true, false].map(none => [...body.rows].filter(row => /^–?$/.test(shown(row)) == none));
    const numbers = full.every(row => !isNaN(figure(shown(row))));
    full.sort((a, b) => (up ? 1 : -1) * (numbers ? figure(shown(a)) - figure(shown(b))
      : shown(a).localeCompare(shown(b))));
    all(table, "thead th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...full, ...empty);
  };
});
for (const choice of all(document, ".choice")) {
  const buttons = all(choice, ":scope > button"), parts = all(choice, ":scope > div");
  buttons.forEach((button, i) => button.onclick = () => buttons.forEach((other, j) => {
    other.setAttribute("aria-pressed", i == j);
    parts[j].hidden = i != j;
  }));
}
addEventListener("beforeprint", () => all(document, "details").forEach(part => part.open = true));
