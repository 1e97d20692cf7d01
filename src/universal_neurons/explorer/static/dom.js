// Elements made by calls. Whatever a token, a label or a name says arrives as a text node, never as markup.
(function () {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const SAFE_LINK = /^(?:[a-z]+\.html(?:[?#]|$)|#|blob:)/;

  function set(element, name, value) {
    if (value === undefined || value === null || value === false) return;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const key in value) element.style.setProperty(key, value[key]);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") element[name] = value;
    else if (name === "href" && !SAFE_LINK.test(value)) throw new Error(`no link of ours: ${value}`);
    else element.setAttribute(name, value === true ? "" : value);
  }

  function filled(element, attributes, children) {
    for (const name in attributes) set(element, name, attributes[name]);
    for (const child of children.flat(Infinity)) {
      if (child !== null && child !== undefined && child !== false) element.append(child);
    }
    return element;
  }

  un.h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
  un.svg = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);
  // Text from outside: isolated, so that its writing direction stays its own.
  un.said = (text, kind) => un.h("bdi", { class: kind ? `said ${kind}` : "said" }, String(text));
  un.clear = (element, ...children) => (element.replaceChildren(), filled(element, {}, children));
  // Draw a holder anew, and leave the focus on what stands in the same place.
  un.redrawn = function (holder, ...children) {
    const inside = () => [...holder.querySelectorAll("a, button, input, select")];
    const at = inside().indexOf(document.activeElement);
    un.clear(holder, ...children);
    if (at >= 0 && inside()[at]) inside()[at].focus();
  };
  un.empty = (why) => un.h("p", { class: "empty" }, why);

  un.section = function (id, title, ...children) {
    const heading = un.h("h2", { id: `${id}-title` }, title);
    return un.h("section", { id, "aria-labelledby": `${id}-title` }, heading, children);
  };

  un.download = function (text, name, make) {
    // The link's file is made when it is asked for, and let go afterwards.
    const link = un.h("a", { class: "button", href: "#", download: name }, text);
    link.addEventListener("click", () => {
      const { content, type } = make();
      const url = URL.createObjectURL(new Blob([content], { type }));
      link.href = url;
      setTimeout(() => URL.revokeObjectURL(url), 60000);
    });
    return link;
  };

  // One bubble for all: a term's sentence, a plot's value. It follows hover and focus, and Escape closes it.
  let bubble;
  function place(target) {
    const box = target.getBoundingClientRect();
    const own = bubble.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - own.width - 8));
    const above = box.top - own.height - 6;
    bubble.style.left = `${left}px`;
    bubble.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  }
  un.hide = () => bubble && (bubble.hidden = true);
  un.bubble = function (target, ...content) {
    if (!bubble) {
      bubble = un.h("div", { id: "bubble", role: "tooltip", hidden: true });
      document.body.append(bubble);
      document.addEventListener("keydown", (event) => event.key === "Escape" && un.hide());
      document.addEventListener("scroll", un.hide, { passive: true, capture: true });
    }
    un.clear(bubble, content);
    bubble.hidden = false;
    place(target);
  };
  un.hinted = function (element, content) {
    const show = () => un.bubble(element, content());
    for (const name of ["mouseenter", "focus"]) element.addEventListener(name, show);
    for (const name of ["mouseleave", "blur"]) element.addEventListener(name, un.hide);
    return element;
  };
})();
