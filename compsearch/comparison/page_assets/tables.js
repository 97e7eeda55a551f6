// Tables: a click (or Enter) on a heading sorts by its column, a second one the other way round.
// Numbers are in data-sort, written by the page's maker; cells without a value stay last both ways.
(() => {
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  function key(row, column) {
    const cell = row.cells[column];
    if (cell.classList.contains("empty")) return null;
    return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
  }

  function sort(table, column, descending) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => ({ row, key: key(row, column) }));
    rows.sort((one, other) => {
      if (one.key === null || other.key === null) return (one.key === null) - (other.key === null);
      const order =
        typeof one.key === "number" && typeof other.key === "number"
          ? one.key - other.key
          : collator.compare(one.key, other.key);
      return descending ? -order : order;
    });
    body.append(...rows.map((entry) => entry.row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((each) => each.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      });
    });
  }
})();
