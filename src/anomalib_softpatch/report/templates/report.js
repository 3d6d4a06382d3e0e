"use strict";
(() => {
  const gallery = document.getElementById("images");
  const figures = Array.from(gallery.children);
  if (!figures.length) return;
  const find = (id) => document.getElementById(id);
  // The slider rounds what it is set to.
  const reaches = (figure, limit) => Number(figure.dataset.score) >= limit - 1e-6;
  const verdicts = ["normal", "defect", "set_aside"]; // classes of figures and values of buttons, too
  const decisions = new Map(); // figure -> one of these
  const history = []; // of lists of [figure, what it was before]
  let shown = figures;
  let current = null;
  document.documentElement.classList.add("script");

  // What was decided survives a reload where the browser allows it.
  const key = "decisions of " + document.body.dataset.key;
  let saved = true;
  const remember = () => {
    saved = false;
    const state = figures.filter((figure) => decisions.has(figure));
    try {
      localStorage.setItem(key, JSON.stringify(state.map((figure) => [figure.id, decisions.get(figure)])));
    } catch { /* no storage: leaving the page asks */ }
  };

  function paint(figure) {
    const decision = decisions.get(figure);
    for (const verdict of verdicts) figure.classList.toggle(verdict, decision === verdict);
    for (const button of figure.querySelectorAll("button.verdict")) {
      button.setAttribute("aria-pressed", String(button.value === decision));
    }
    if (find("viewer").open && figure === current) showInViewer();
  }

  function put(figure, decision) {
    if (decision) decisions.set(figure, decision);
    else decisions.delete(figure);
    paint(figure);
  }

  function count() {
    const numbers = { normal: 0, defect: 0, set_aside: 0 };
    for (const decision of decisions.values()) numbers[decision]++;
    const defects = numbers.defect === 1 ? "1 defect" : `${numbers.defect} defects`;
    const undecided = figures.length - decisions.size;
    find("counts").textContent = `${numbers.set_aside} set aside, ${defects}, ${numbers.normal} normal, ${undecided} undecided`;
    find("undo").disabled = !history.length;
  }

  function decide(some, decision) {
    const before = some.filter((figure) => decisions.get(figure) !== decision);
    if (!before.length) return;
    history.push(before.map((figure) => [figure, decisions.get(figure)]));
    before.forEach((figure) => put(figure, decision));
    remember();
    count();
  }

  function undo() {
    const step = history.pop();
    if (!step) return;
    step.forEach(([figure, decision]) => put(figure, decision));
    choose(step[0][0]);
    remember();
    count();
  }

  // Filter and order

  function filter() {
    const [decision, group, finding] = ["decision", "group", "finding"].map((id) => find(id)?.value ?? "");
    const text = find("search").value.toLowerCase();
    const matches = (figure) =>
      (!decision || (decisions.get(figure) ?? "undecided") === decision) &&
      (!group || (group === "any" ? figure.dataset.group !== "" : figure.dataset.group === group)) &&
      (!finding || JSON.parse(figure.dataset.findings).includes(finding)) &&
      (!text || figure.dataset.name.toLowerCase().includes(text));
    for (const figure of figures) figure.hidden = !matches(figure);
    shown = Array.from(gallery.children).filter((figure) => !figure.hidden);
    find("shown").textContent = shown.length === figures.length ? "" : `${shown.length} of ${figures.length} shown`;
    if (current?.hidden) choose(null);
  }

  const orders = {
    suspicious: (one, other) => one.dataset.rank - other.dataset.rank,
    normal: (one, other) => other.dataset.rank - one.dataset.rank,
    name: (one, other) => one.dataset.name.localeCompare(other.dataset.name, undefined, { numeric: true }),
    group: (one, other) => (one.dataset.group || 1e9) - (other.dataset.group || 1e9) || one.dataset.rank - other.dataset.rank,
  };

  function order() {
    gallery.append(...figures.slice().sort(orders[find("order").value]));
    filter();
  }

  // One image at a time

  function choose(figure) {
    current?.classList.remove("current");
    current = figure;
    if (!current) return;
    current.classList.add("current");
    current.scrollIntoView({ block: "nearest" });
    if (find("viewer").open) showInViewer();
  }

  function move(step) {
    if (!shown.length) return;
    const place = shown.indexOf(current);
    choose(shown[place < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, place + step))]);
  }

  function decideAndGoOn(decision) {
    decide([current], decision);
    move(1);
  }

  const columns = () => getComputedStyle(gallery).gridTemplateColumns.split(" ").length;

  function showInViewer() {
    const viewer = find("viewer");
    const drawing = current.querySelector("img");
    viewer.querySelector(".title").textContent = current.dataset.name;
    viewer.querySelector(".text").textContent = current.querySelector(".summary").textContent;
    viewer.className = decisions.get(current) ?? "";
    const original = viewer.querySelector(".original");
    original.hidden = false;
    original.src = current.dataset.link;
    viewer.querySelector(".file").href = current.dataset.link;
    viewer.querySelector(".drawing").hidden = !drawing;
    if (drawing) viewer.querySelector(".drawing").src = drawing.src;
  }
  find("viewer").querySelector(".original").addEventListener("error", (event) => {
    event.target.hidden = true; // a format that browsers do not show, or a file that has gone: the drawing remains
  });

  function view(figure) {
    choose(figure);
    if (!find("viewer").open) find("viewer").showModal();
    showInViewer();
  }

  gallery.addEventListener("click", (event) => {
    const figure = event.target.closest("figure");
    if (!figure) return;
    const button = event.target.closest("button");
    if (button?.dataset.group) {
      find("group").value = button.dataset.group;
      filter();
    } else if (button) {
      choose(figure);
      decide([figure], button.value);
    } else if (event.target.closest("a.larger") && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      view(figure);
    } else if (!event.target.closest("a")) {
      choose(figure);
    }
  });

  find("viewer").addEventListener("click", (event) => {
    if (event.target === event.currentTarget || event.target.closest(".close")) find("viewer").close();
    const button = event.target.closest("button.verdict");
    if (button) decideAndGoOn(button.value);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const keys = { k: "normal", x: "defect", d: "set_aside" };
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
    if (event.key in steps) move(steps[event.key]);
    else if (event.key === "u") undo();
    else if (event.key in keys && current) decideAndGoOn(keys[event.key]);
    else if (event.key === "Enter" && current && !event.target.closest("a, button")) view(current);
    else return;
    event.preventDefault();
  });

  // Mark by score: the slider has the scale of the histogram above it

  const slider = find("slider");
  function mark(event) {
    const limit = Number(slider.value);
    let above = 0;
    for (const figure of figures) {
      const is = reaches(figure, limit);
      figure.classList.toggle("above", is && Boolean(event)); // only once the slider has been moved
      above += is;
    }
    const place = (limit - slider.min) / (slider.max - slider.min || 1);
    find("limit").setAttribute("transform", `translate(${place * {{ bins }}} 0)`);
    const which = above === 1 ? "image" : `${above} images`;
    find("mark").textContent = `Set aside the ${which} with a score of ${limit.toFixed(2)} or more`;
    find("mark").disabled = !above;
  }
  slider.addEventListener("input", mark);
  find("mark").addEventListener("click", () => {
    const limit = Number(slider.value);
    decide(figures.filter((figure) => reaches(figure, limit) && !decisions.has(figure)), "set_aside");
  });

  // The decision as a file

  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  function csv() {
    const lines = figures.map((figure) => `${cell(figure.dataset.location)},${decisions.get(figure) ?? ""},`);
    return ["path,verdict,region", ...lines, ""].join("\n");
  }
  find("download").addEventListener("click", () => {
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    anchor.download = "decisions.csv";
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 1000);
    saved = true;
  });
  addEventListener("beforeunload", (event) => {
    if (!saved && decisions.size) event.preventDefault();
  });

  find("undo").addEventListener("click", undo);
  find("order").addEventListener("change", order);
  for (const id of ["decision", "group", "finding"]) find(id)?.addEventListener("change", filter);
  find("search").addEventListener("input", filter);
  try {
    for (const [id, decision] of JSON.parse(localStorage.getItem(key)) ?? []) {
      if (find(id) && verdicts.includes(decision)) put(find(id), decision);
    }
  } catch { /* nothing that can be read */ }
  mark();
  count();
})();
