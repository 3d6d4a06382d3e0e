"use strict";
(() => {
  const gallery = document.getElementById("images");
  const figures = Array.from(gallery.children);
  if (!figures.length) return;
  const find = (id) => document.getElementById(id);
  const viewer = find("viewer");
  // The slider rounds the values that it is set to.
  const reaches = (figure, limit) => Number(figure.dataset.score) >= limit - 1e-6;
  const verdicts = ["normal", "defect", "set_aside"]; // also classes of figures and values of buttons
  const keys = new Map(); // key -> verdict
  for (const button of viewer.querySelectorAll("button.verdict")) keys.set(button.dataset.key, button.value);
  const decisions = new Map(); // figure -> verdict
  const regions = new Map(); // figure -> box around the defect: [x, y, width, height] in pixels of the image
  const history = []; // lists of [figure, its previous verdict, its previous region]
  const saveUndecided = "saveUndecided" in document.body.dataset;
  const [tile, gap] = [Number(document.body.dataset.tile), Number(document.body.dataset.gap)];
  let shown = figures;
  let current = null;
  document.documentElement.classList.add("script");

  const decided = (figure) => [decisions.get(figure), regions.get(figure)];

  // Decisions survive a reload if the browser allows it.
  const key = "decisions of " + document.body.dataset.key;
  let saved = true;
  const remember = () => {
    saved = false;
    const state = figures.filter((figure) => decisions.has(figure));
    try {
      localStorage.setItem(key, JSON.stringify(state.map((figure) => [figure.id, ...decided(figure)])));
    } catch { /* no storage: the browser asks before it leaves the page */ }
  };

  function paint(figure) {
    const [decision, region] = decided(figure);
    for (const verdict of verdicts) figure.classList.toggle(verdict, decision === verdict);
    for (const button of figure.querySelectorAll("button.verdict")) {
      button.setAttribute("aria-pressed", String(button.value === decision));
    }
    const all = figure.querySelector("button.all");
    if (all) all.disabled = !decision;
    const link = figure.querySelector("a.larger");
    link.querySelector(".box")?.remove();
    if (region && link.querySelector("img")) {
      const box = document.createElement("span");
      box.className = "box";
      link.append(box);
      place(box, region, inTile(figure), 100 / (2 * tile + gap), 100 / tile, "%");
    }
    if (viewer.open && figure === current) showInViewer();
  }

  function put(figure, decision, region) {
    if (decision) decisions.set(figure, decision);
    else decisions.delete(figure);
    if (region) regions.set(figure, region);
    else regions.delete(figure);
    paint(figure);
  }

  function count() {
    const numbers = { normal: 0, defect: 0, set_aside: 0 };
    for (const decision of decisions.values()) numbers[decision]++;
    const defects = numbers.defect === 1 ? "1 defect" : `${numbers.defect} defects`;
    const undecided = figures.length - decisions.size;
    find("counts").textContent = `${numbers.set_aside} set aside, ${defects}, ${numbers.normal} normal, ${undecided} undecided`;
    find("undo").disabled = !history.length;
    find("download").disabled = !decisions.size && !saveUndecided;
  }

  // Each step is a list of [figure, verdict, region]
  function change(step) {
    if (!step.length) return;
    history.push(step.map(([figure]) => [figure, ...decided(figure)]));
    step.forEach((after) => put(...after));
    remember();
    count();
  }

  function decide(some, decision) {
    change(some.filter((figure) => decisions.get(figure) !== decision).map((figure) => [figure, decision]));
  }

  // Copies a decision to all undecided images that show the same odd thing
  function decideAlike(figure) {
    const alike = figures.filter((other) => other.dataset.alike === figure.dataset.alike && !decisions.has(other));
    if (figure.dataset.alike && decisions.has(figure)) decide(alike, decisions.get(figure));
  }

  // An image with a region has a defect; without a region, the decision is about the whole image
  function mark(figure, region) {
    if (String(regions.get(figure)) === String(region)) return;
    change([[figure, region ? "defect" : decisions.get(figure), region]]);
  }

  function undo() {
    const step = history.pop();
    if (!step) return;
    step.forEach((before) => put(...before));
    choose(step[0][0]);
    remember();
    count();
  }

  // Filter and order

  function filter() {
    const values = ["decision", "group", "alike", "finding"].map((id) => find(id)?.value ?? "");
    const [decision, group, alike, finding] = values;
    const text = find("search").value.toLowerCase();
    const matches = (figure) =>
      (!decision || (decisions.get(figure) ?? "undecided") === decision) &&
      (!group || (group === "any" ? figure.dataset.group !== "" : figure.dataset.group === group)) &&
      (!alike || (alike === "any" ? figure.dataset.alike !== "" : figure.dataset.alike === alike)) &&
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
    highest: (one, other) => other.dataset.score - one.dataset.score || one.dataset.rank - other.dataset.rank,
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
    if (viewer.open) showInViewer();
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

  const original = viewer.querySelector(".original");
  const drawing = viewer.querySelector(".drawing");
  const outline = viewer.querySelector(".box");

  function showInViewer() {
    const thumbnail = current.querySelector("img");
    viewer.querySelector(".title").textContent = current.dataset.name;
    viewer.querySelector(".text").textContent = current.querySelector(".summary").textContent;
    viewer.className = decisions.get(current) ?? "";
    for (const button of viewer.querySelectorAll("button.verdict")) {
      const text = current.querySelector(`button[value=${button.value}]`).textContent;
      button.textContent = `${text} (${button.dataset.key})`;
    }
    if (original.getAttribute("src") !== current.dataset.link) {
      original.hidden = false;
      original.src = current.dataset.link;
    }
    viewer.querySelector(".file").href = current.dataset.link;
    drawing.hidden = !thumbnail;
    if (thumbnail) drawing.src = thumbnail.src;
    find("region").value = regions.get(current)?.join(" ") ?? "";
    find("region").disabled = !sizeOf(current);
    find("region").setCustomValidity("");
    showBox(regions.get(current));
  }
  original.addEventListener("error", () => {
    original.hidden = true; // a format that browsers cannot show, or a missing file: only the drawing is shown
    if (current) showBox(regions.get(current));
  });

  function view(figure) {
    choose(figure);
    if (!viewer.open) viewer.showModal();
    showInViewer();
  }

  gallery.addEventListener("click", (event) => {
    const figure = event.target.closest("figure");
    if (!figure) return;
    const button = event.target.closest("button");
    const chip = ["group", "alike"].find((name) => button?.dataset[name]);
    if (chip) {
      find(chip).value = button.dataset[chip];
      filter();
    } else if (button?.classList.contains("all")) {
      choose(figure);
      decideAlike(figure);
    } else if (button) {
      choose(figure);
      decide([figure], button.value);
    } else if (event.target.closest("a.larger") && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      view(figure);
    } else if (!event.target.closest("a, summary")) {
      choose(figure);
    }
  });

  let pressed = null; // drawing a box beyond the viewer's edge ends with a click there, which must not close it
  viewer.addEventListener("pointerdown", (event) => (pressed = event.target));
  viewer.addEventListener("click", (event) => {
    if ((event.target === viewer && pressed === viewer) || event.target.closest(".close")) viewer.close();
    const button = event.target.closest("button.verdict");
    if (button) decideAndGoOn(button.value);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
    if (event.key in steps) move(steps[event.key]);
    else if (event.key === "u") undo();
    else if (event.key === "s" && current) decideAlike(current);
    else if (keys.has(event.key) && current) decideAndGoOn(keys.get(event.key));
    else if (event.key === "Enter" && current && !event.target.closest("a, button, summary")) view(current);
    else if (event.key === "r" && current) {
      view(current);
      find("region").focus();
    } else return;
    event.preventDefault();
  });

  // The region of a defect: a box that is drawn on the image or entered as text

  const sizeOf = (figure) => JSON.parse(figure.dataset.size); // [width, height] in pixels; null if unknown

  // Position and scale of the image in the left half of its drawing
  function inTile(figure) {
    const [width, height] = sizeOf(figure);
    const scale = Math.min(tile / width, tile / height);
    const [drawnWidth, drawnHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    return {
      left: Math.floor((tile - drawnWidth) / 2),
      top: Math.floor((tile - drawnHeight) / 2),
      scaleX: drawnWidth / width,
      scaleY: drawnHeight / height,
    };
  }

  // The element that boxes are drawn on
  const canvas = () => (original.hidden ? drawing : original);

  // Position and scale of the image in the viewer; null until it is loaded
  function inViews() {
    const element = canvas();
    if (!sizeOf(current) || element.hidden || !element.naturalWidth) return null;
    const views = element.parentElement.getBoundingClientRect();
    const rectangle = element.getBoundingClientRect();
    const scale = Math.min(rectangle.width / element.naturalWidth, rectangle.height / element.naturalHeight);
    const [width, height] = sizeOf(current);
    const part =
      element === drawing
        ? inTile(current)
        : { left: 0, top: 0, scaleX: element.naturalWidth / width, scaleY: element.naturalHeight / height };
    return {
      left: rectangle.left - views.left + (rectangle.width - element.naturalWidth * scale) / 2 + part.left * scale,
      top: rectangle.top - views.top + (rectangle.height - element.naturalHeight * scale) / 2 + part.top * scale,
      scaleX: part.scaleX * scale,
      scaleY: part.scaleY * scale,
    };
  }

  function place(element, [x, y, width, height], image, unitX, unitY, unit) {
    element.style.left = `${(image.left + x * image.scaleX) * unitX}${unit}`;
    element.style.top = `${(image.top + y * image.scaleY) * unitY}${unit}`;
    element.style.width = `${width * image.scaleX * unitX}${unit}`;
    element.style.height = `${height * image.scaleY * unitY}${unit}`;
  }

  function showBox(region) {
    const image = region && inViews();
    outline.hidden = !image;
    if (image) place(outline, region, image, 1, 1, "px");
    for (const element of [original, drawing]) {
      element.classList.toggle("canvas", element === canvas() && Boolean(sizeOf(current)));
    }
  }
  const showAgain = () => viewer.open && current && showBox(regions.get(current));
  for (const element of [original, drawing]) element.addEventListener("load", showAgain);
  addEventListener("resize", showAgain);

  // The box between two positions of the pointer, in whole pixels and clipped to the image
  function between(one, other) {
    const image = inViews();
    const views = original.parentElement.getBoundingClientRect();
    const inside = (value, most) => Math.min(most, Math.max(0, value));
    const [width, height] = sizeOf(current);
    const columns = [one, other].map((event) => inside((event.clientX - views.left - image.left) / image.scaleX, width));
    const rows = [one, other].map((event) => inside((event.clientY - views.top - image.top) / image.scaleY, height));
    const [x, y] = [Math.floor(Math.min(...columns)), Math.floor(Math.min(...rows))];
    return [x, y, Math.ceil(Math.max(...columns)) - x, Math.ceil(Math.max(...rows)) - y];
  }

  const SMALLEST = 3; // smallest side of a drawn box, in pixels of the screen; anything smaller is a click
  let start = null;
  viewer.addEventListener("pointerdown", (event) => {
    if (event.button || event.target !== canvas() || !inViews()) return;
    start = event;
    find("region").blur(); // so that keys are decisions again
    event.preventDefault();
  });
  addEventListener("pointermove", (event) => {
    if (start) showBox(between(start, event));
  });
  addEventListener("pointerup", (event) => {
    if (!start) return;
    const sides = [event.clientX - start.clientX, event.clientY - start.clientY].map(Math.abs);
    const region = between(start, event);
    start = null;
    if (Math.min(...sides) >= SMALLEST && Math.min(...region.slice(2)) > 0) mark(current, region);
    showBox(regions.get(current));
  });
  addEventListener("pointercancel", () => {
    start = null;
    showAgain();
  });

  find("region").addEventListener("change", (event) => {
    const text = event.target.value.trim();
    const numbers = text.split(/\s+/).map(Number);
    const [x, y, width, height] = numbers;
    const [fullWidth, fullHeight] = sizeOf(current);
    const isBox = /^\d+(\s+\d+){3}$/.test(text) && width && height && x + width <= fullWidth && y + height <= fullHeight;
    const message = `Enter four whole numbers, x y width height, of a box inside the ${fullWidth} x ${fullHeight} pixels of the image.`;
    event.target.setCustomValidity(isBox || !text ? "" : message);
    if (!event.target.reportValidity()) return;
    mark(current, text ? numbers : undefined);
    event.target.blur(); // so that keys are decisions again
  });

  // Set aside by score, if there is a slider: it has the scale of the histogram above it

  const slider = find("slider");
  function chooseByScore(event) {
    const limit = Number(slider.value);
    let above = 0;
    for (const figure of figures) {
      const is = reaches(figure, limit);
      figure.classList.toggle("above", is && Boolean(event)); // only after the slider was moved
      above += is;
    }
    const share = (limit - slider.min) / (slider.max - slider.min || 1);
    find("limit").setAttribute("transform", `translate(${share * slider.dataset.bins} 0)`);
    const which = above === 1 ? "image" : `${above} images`;
    find("mark").textContent = `Set aside the ${which} with a score of ${limit.toFixed(2)} or more`;
    find("mark").disabled = !above;
  }
  slider?.addEventListener("input", chooseByScore);
  find("mark")?.addEventListener("click", () => {
    const limit = Number(slider.value);
    decide(figures.filter((figure) => reaches(figure, limit) && !decisions.has(figure)), "set_aside");
  });

  // The decisions as a file

  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  function csv() {
    const lines = figures
      .filter((figure) => saveUndecided || decisions.has(figure))
      .map((figure) => `${cell(figure.dataset.location)},${decisions.get(figure) ?? ""},${regions.get(figure)?.join(" ") ?? ""}`);
    const others = JSON.parse(find("not-shown")?.textContent ?? "[]").map((path) => `${cell(path)},,`);
    return ["path,verdict,region", ...lines, ...others, ""].join("\n");
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
  for (const id of ["decision", "group", "alike", "finding"]) find(id)?.addEventListener("change", filter);
  find("search").addEventListener("input", filter);
  try {
    for (const [id, decision, region] of JSON.parse(localStorage.getItem(key)) ?? []) {
      if (find(id) && verdicts.includes(decision)) put(find(id), decision, region);
    }
  } catch { /* no storage, or unreadable content */ }
  if (slider) chooseByScore();
  count();
})();
