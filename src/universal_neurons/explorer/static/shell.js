// What every page has: its head with the study, the pages and the search; what is said when something cannot be read.
(function () {
  "use strict";
  const NAMES = {
    study: "Study", families: "Families", roles: "Roles", layers: "Layers", models: "Models", subsets: "Subsets",
    dynamics: "Dynamics", diff: "Diff", explanations: "Explanations", text: "Your text",
  };

  function pageLink(page, current) {
    return un.h("a", { href: un.href(page), "aria-current": page === current && "page" }, NAMES[page] || page);
  }

  function studyChoice(page) {
    if (un.site.studies.length < 2) return un.h("a", { class: "study-name", href: un.href("study") }, un.said(un.study.title));
    const at = un.site.studies.map((study) => [study.id, study.title]);
    const go = (id) => (location.href = `${page === "unit" || page === "index" ? "study" : page}.html?s=${id}`);
    const select = un.h("select", { "aria-label": "Study", class: "study-name", onchange: () => go(select.value) });
    for (const [id, title] of at) select.append(un.h("option", { value: id, selected: id === un.study.id }, title));
    return select;
  }

  function drawHead(page) {
    const listed = un.site.studies.find((study) => study.id === un.study.id);
    const pages = listed.pages.filter((name) => name in NAMES && name !== "text" && name !== "unit");
    if (un.site.served) pages.push("text");
    const home = un.h("a", { class: "home", href: "index.html" }, un.h("img", { src: "static/icon.svg", alt: "", width: 22, height: 22 }), "Universal neurons");
    un.clear(
      document.getElementById("top"),
      un.h("div", { class: "bar" }, home, studyChoice(page), un.searchBox()),
      un.h("nav", { "aria-label": "Pages" }, pages.map((name) => pageLink(name, page))),
    );
  }

  un.showError = function (error) {
    const main = document.getElementById("page");
    un.clear(main, un.h("h1", {}, "This page cannot be shown"), un.h("p", { class: "notice" }, error.message));
    main.removeAttribute("aria-busy");
  };

  un.start = async function () {
    const page = document.body.dataset.page;
    const main = document.getElementById("page");
    try {
      const wanted = un.asked("s");
      if (/^[a-z0-9-]{1,40}$/.test(wanted || "")) un.load(`${wanted}/study`).catch(() => null); // both at once
      un.site = await un.load("site");
      const listed = un.site.studies.find((study) => study.id === wanted) || (wanted ? null : un.site.studies[0]);
      if (!listed) throw new Error("This site has no study of that name. Its first page lists those that it has.");
      un.study = await un.load(`${listed.id}/study`);
      drawHead(page);
      document.title = `${un.study.title} · ${document.title}`;
      await un.pages[page](main);
      main.dataset.ready = "yes";
      performance.mark("ready");
    } catch (error) {
      un.showError(error);
      main.dataset.ready = "error";
    }
  };
  // Why a page has nothing, in the study's own words where it has them.
  un.absent = (key, otherwise) => un.empty(un.study.absent[key] || otherwise);
})();
