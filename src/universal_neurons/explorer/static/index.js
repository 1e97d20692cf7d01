// The first page: the studies of the site, or the only one.
(function () {
  "use strict";
  const isDiff = (study) => study.pages.includes("diff");
  un.pages.index = async function (main) {
    if (un.site.studies.length < 2) return un.pages.study(main);
    const cards = un.site.studies.map((study) =>
      un.h("li", {}, un.h("h2", {}, un.h("a", { href: `${isDiff(study) ? "diff" : "study"}.html?s=${study.id}` }, un.said(study.title))), isDiff(study) && un.h("p", {}, un.h("span", { class: "chip" }, "diff"), "what training changed"),
        un.h("p", { class: "quiet" }, un.count(study.models.length, "model"), ": ", study.models.map((name, at) => [at ? ", " : "", un.said(name)]))));
    un.clear(main, un.h("h1", {}, "Studies"), un.h("ul", { class: "cards" }, cards));
  };
})();
