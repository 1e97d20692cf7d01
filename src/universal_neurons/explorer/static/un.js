// The one global. A data file calls `un.add(path, data)`; `un.load(path)` adds that file's script element, once.
(function () {
  "use strict";
  const kept = new Map();
  const promised = new Map();
  const PATH = /^[a-z0-9-]+(\/[a-z0-9-]+)*$/;

  function fetched(path) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.onload = () => {
        script.remove();
        if (kept.has(path)) resolve(kept.get(path));
        else reject(new Error(`data/${path}.js does not hold ${path}.`));
      };
      script.onerror = () => {
        script.remove();
        promised.delete(path);
        reject(new Error(`data/${path}.js cannot be read: is the site whole?`));
      };
      script.src = `data/${path}.js`;
      document.head.append(script);
    });
  }

  window.un = {
    pages: {},
    add(path, data) {
      kept.set(path, data);
    },
    load(path) {
      if (!PATH.test(path)) return Promise.reject(new Error(`${path} is no path of a data file.`));
      if (!promised.has(path)) promised.set(path, fetched(path));
      return promised.get(path);
    },
  };
})();
