"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const { levels, whole, prompt, answer, rows, images } = JSON.parse(find("data").textContent);
  const everything = rows.map((_, index) => index);
  const figures = [...document.querySelectorAll("figure")];
  const buttons = [...find("most").querySelectorAll("button")];
  // indices of parts of the answer: what is kept by a click, pointed at, and moved to by keys
  const choice = { kept: null, pointed: null, focused: null };
  const sums = new Map();
  let scale = "choice";

  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const largest = (numbers) => numbers.reduce((most, number) => Math.max(most, Math.abs(number)), 0);
  // text from right to left must not turn the number beside it
  const isolated = (text) => `\u2068${text}\u2069`;
  const short = (text) => (text.length > 40 ? `${text.slice(0, 39)}…` : text);

  function signed(value, digits = 3) {
    const text = String(Number(Math.abs(value).toPrecision(digits)));
    return text === "0" ? text : (value < 0 ? "−" : "+") + text;
  }

  function percent(part, value) {
    return `${Math.round((100 * part) / value)}\u00a0%`.replace("-", "−");
  }

  // A text in spans. The spans stay as they are until another unit is chosen; only their classes change.
  class Panel {
    constructor(name, { text, views }) {
      Object.assign(this, { name, text, views, box: find(`${name}-text`) });
      if (Object.keys(views).length) this.show(Object.keys(views)[0]);
    }

    show(unit) {
      Object.assign(this, this.views[unit], { unit, at: 0 });
      let place = 0;
      const pieces = this.parts.flatMap(([start, end, name], index) => {
        const span = document.createElement("span");
        span.textContent = start < end ? this.text.slice(start, end) : name;
        span.tabIndex = index ? -1 : 0;
        span.dataset.index = index;
        if (start === end) span.dataset.chip = "";
        else if (name) span.dataset.name = name;
        // a new line has no width that could have a colour
        if (start < end && !span.textContent.trim()) {
          span.dataset.line = "↵".repeat(span.textContent.split("\n").length - 1);
        }
        const before = this.text.slice(place, Math.max(place, start));
        place = Math.max(place, end);
        return [before, span];
      });
      this.box.replaceChildren(...pieces, this.text.slice(place));
      this.spans = [...this.box.children];
      this.shades = this.spans.map(() => "");
      this.members = this.parts.map(() => []);
      this.owners.forEach((owner, index) => this.members[owner].push(index));
    }

    label(index) {
      const [start, end, name] = this.parts[index];
      return name || short(this.text.slice(start, end).replace(/\n/g, "↵"));
    }

    // The largest of the text: special tokens often have by far more.
    limit(values) {
      return largest(values.filter((_, index) => this.parts[index][0] < this.parts[index][1])) || largest(values);
    }

    paint(values, limit) {
      let beyond = false;
      values.forEach((value, index) => {
        const level = limit ? Math.round(levels * Math.min(Math.abs(value) / limit, 1)) : 0;
        const over = Math.abs(value) > limit * (1 + 1e-6);
        const shade = level ? (value > 0 ? "p" : "n") + level + (over ? " beyond" : "") : "";
        beyond ||= over;
        if (shade !== this.shades[index]) this.spans[index].className = this.shades[index] = shade;
      });
      return beyond;
    }

    index(target) {
      const span = target.closest?.("[data-index]");
      return span && this.box.contains(span) ? Number(span.dataset.index) : null;
    }

    focus(index) {
      this.spans[this.at].tabIndex = -1;
      this.at = index;
      this.spans[index].tabIndex = 0;
      this.spans[index].focus();
    }

    // The nearest part in the line above or below.
    beside(index, step) {
      const here = this.spans[index].getBoundingClientRect();
      const middle = (box) => (box.left + box.right) / 2;
      let [found, distance, line] = [index, Infinity, null];
      for (let next = index + step; this.spans[next]; next += step) {
        const box = this.spans[next].getBoundingClientRect();
        if (Math.abs(box.top - here.top) < here.height / 2) continue;
        line ??= box.top;
        if (Math.abs(box.top - line) > box.height / 2) break;
        if (Math.abs(middle(box) - middle(here)) < distance) {
          [found, distance] = [next, Math.abs(middle(box) - middle(here))];
        }
      }
      return found;
    }

    move(key, index) {
      const forward = getComputedStyle(this.box).direction === "rtl" ? -1 : 1;
      const last = this.spans.length - 1;
      const moves = {
        ArrowRight: () => index + forward,
        ArrowLeft: () => index - forward,
        ArrowDown: () => this.beside(index, 1),
        ArrowUp: () => this.beside(index, -1),
        Home: () => 0,
        End: () => last,
      };
      if (!(key in moves)) return false;
      this.focus(Math.min(Math.max(moves[key](), 0), last));
      return true;
    }
  }

  const read = new Panel("prompt", prompt);
  const said = new Panel("answer", answer);
  const chosen = () => choice.kept ?? choice.pointed ?? choice.focused;
  const members = (part) => (part === null ? everything : said.members[part]);

  // Relevance of the prompt's parts for some rows together.
  function relevance(list) {
    let tokens = rows[list[0]].relevance;
    if (list.length > 1) {
      tokens = new Float64Array(tokens.length);
      for (const row of list) rows[row].relevance.forEach((value, index) => (tokens[index] += value));
    }
    const values = new Float64Array(read.parts.length);
    read.owners.forEach((owner, index) => (values[owner] += tokens[index]));
    return values;
  }

  // What takes long is computed once for each pair of units.
  function once(what, compute) {
    const key = JSON.stringify([what, read.unit, said.unit]);
    if (!sums.has(key)) sums.set(key, compute());
    return sums.get(key);
  }

  const shared = () =>
    once("shared", () => said.members.reduce((most, list) => Math.max(most, read.limit(relevance(list))), 0));

  function map(image, list) {
    return image[0].map((line, y) => line.map((_, x) => sum(list.map((row) => image[row][y][x]))));
  }

  function shares(list, values) {
    const value = sum(list.map((row) => rows[row].value));
    const within = sum(list.map((row) => rows[row].within));
    const other = sum(list.map((row) => rows[row].other));
    const pictured = sum(images.map((image) => sum(map(image, list).flat())));
    const part = sum(values) + pictured;
    const left = value - part - within - other;
    const parts = [["prompt", part], ["answer itself", within], ["everything else", other]];
    if (Math.abs(left) > 0.005 * Math.abs(value)) parts.push(["not accounted for", left]);
    // what cancels is not told in shares of the little that is left
    const cancels = 10 * Math.abs(value) <= largest(parts.map(([, amount]) => amount));
    const told = parts.map(([name, amount]) => `${name} ${cancels ? signed(amount) : percent(amount, value)}`);
    return `of ${signed(value)}: ${told.join(", ")}`;
  }

  function most(values) {
    const order = [...values.keys()].filter((index) => values[index]);
    order.sort((one, other) => Math.abs(values[other]) - Math.abs(values[one]));
    buttons.forEach((button, place) => {
      const index = order[place];
      button.hidden = index === undefined;
      button.dataset.index = index;
      button.textContent = button.hidden ? "" : `“${isolated(read.label(index))}” ${signed(values[index])}`;
    });
    find("most").hidden = !order.length;
  }

  function draw(image, figure, list) {
    const values = map(image, list);
    const limit = largest(values.flat());
    const canvas = figure.querySelector("canvas");
    [canvas.height, canvas.width] = [values.length, values[0].length];
    const layer = new ImageData(canvas.width, canvas.height);
    values.flat().forEach((value, index) => {
      const [red, green, blue] = value > 0 ? [208, 24, 48] : [24, 96, 200];
      layer.data.set([red, green, blue, limit ? (230 * Math.abs(value)) / limit : 0], 4 * index);
    });
    canvas.getContext("2d").putImageData(layer, 0, 0);
    figure.classList.add("drawn");
    figure.querySelector("figcaption span").textContent =
      `: ${signed(sum(values.flat()))} in all, strongest colour ${signed(limit).replace("+", "±")}`;
  }

  let values;
  function paint() {
    const part = chosen();
    const list = members(part);
    values = part === null ? once("whole", () => relevance(everything)) : relevance(list);
    const limit = scale === "shared" && part !== null ? shared() : read.limit(values);
    find("beyond").hidden = !read.paint(values, limit);
    said.spans?.forEach((span, index) => {
      const [is, kept] = [index === part ? "chosen" : "", String(index === choice.kept)];
      if (span.className !== is) span.className = is;
      if (span.ariaSelected !== kept) span.ariaSelected = kept;
    });
    find("low").textContent = signed(-limit);
    find("high").textContent = signed(limit);
    find("chosen").textContent = part === null ? whole : `“${said.label(part)}”`;
    find("shares").textContent = shares(list, values);
    find("clear").hidden = choice.kept === null;
    most(values);
    images.forEach((image, index) => draw(image, figures[index], list));
  }

  function choose(changes) {
    const before = [chosen(), choice.kept];
    Object.assign(choice, changes);
    if (chosen() !== before[0] || choice.kept !== before[1]) paint();
  }

  const tip = find("tip");
  function hint(text, box) {
    tip.textContent = text;
    tip.hidden = false;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(box.left, room))}px`;
    // below, so that the scale and the status are not covered
    const below = box.bottom + 6;
    const fits = below + tip.offsetHeight <= document.documentElement.clientHeight;
    tip.style.top = `${fits ? below : box.top - tip.offsetHeight - 6}px`;
  }

  function describe(panel, index) {
    const value = sum(members(chosen()).map((row) => rows[row].value));
    const number = panel === read ? values[index] : sum(said.members[index].map((row) => rows[row].value));
    const share = panel === read && value ? `, ${percent(number, value)} of ${signed(value)}` : "";
    const what = panel === read ? "relevance" : "explained value";
    const name = panel.parts[index][2];
    panel.spans[index].setAttribute("aria-describedby", "tip");
    hint(`${name ? `${isolated(name)}: ` : ""}${what} ${signed(number, 6)}${share}`, panel.spans[index].getClientRects()[0]);
  }

  function follow(panel) {
    const { box } = panel;
    const over = (kind) => (event) => {
      const index = panel.index(event.target);
      if (index === null) return;
      if (panel === said) choose({ [kind]: index });
      describe(panel, index);
    };
    const out = (kind) => () => {
      tip.hidden = true;
      if (panel === said) choose({ [kind]: null });
    };
    box.addEventListener("mouseover", over("pointed"));
    box.addEventListener("mouseout", out("pointed"));
    box.addEventListener("focusin", over("focused"));
    box.addEventListener("focusout", out("focused"));
    box.addEventListener("keydown", (event) => {
      const index = panel.index(event.target);
      if (index === null || event.ctrlKey || event.altKey || event.metaKey) return;
      const keeps = panel === said && (event.key === "Enter" || event.key === " ");
      if (keeps) choose({ kept: choice.kept === index ? null : index });
      if (keeps || panel.move(event.key, index)) event.preventDefault();
    });
    box.addEventListener("click", (event) => {
      const index = panel.index(event.target);
      if (index === null) return;
      panel.focus(index);
      if (panel === said) choose({ kept: choice.kept === index ? null : index });
    });
    const select = find(`${panel.name}-unit`);
    select.value = panel.unit ?? "";
    select.closest("label").hidden = select.options.length < 2;
    select.addEventListener("change", () => {
      const row = choice.kept === null ? null : said.members[choice.kept][0];
      panel.show(select.value);
      roles();
      Object.assign(choice, { kept: row === null ? null : said.owners[row], pointed: null, focused: null });
      paint();
    });
  }

  function roles() {
    said.box.setAttribute("role", "listbox");
    said.spans?.forEach((span) => span.setAttribute("role", "option"));
  }

  function letGo() {
    tip.hidden = true;
    choose({ kept: null, pointed: null, focused: null });
  }

  follow(read);
  follow(said);
  find("clear").addEventListener("click", letGo);
  document.addEventListener("keydown", (event) => event.key === "Escape" && letGo());
  document.addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  find("scale").addEventListener("change", (event) => {
    scale = event.target.value;
    paint();
  });
  buttons.forEach((button) =>
    button.addEventListener("click", () => {
      const index = Number(button.dataset.index);
      read.spans[index].scrollIntoView({ block: "center" });
      read.focus(index);
    }),
  );
  images.forEach((image, index) => {
    const canvas = figures[index].querySelector("canvas");
    canvas.addEventListener("mousemove", (event) => {
      const cells = map(image, members(chosen()));
      const [x, y] = [event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight];
      const value = cells[Math.floor(y * cells.length)]?.[Math.floor(x * cells[0].length)];
      if (value !== undefined) hint(`relevance ${signed(value, 6)}`, new DOMRect(event.clientX, event.clientY, 0, 0));
    });
    canvas.addEventListener("mouseout", () => (tip.hidden = true));
  });
  document.querySelectorAll(".scripted").forEach((element) => (element.hidden = false));
  find("scale").closest("label").hidden = (said.parts?.length ?? 0) < 2;
  roles();
  paint();
})();
