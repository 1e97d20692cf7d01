// Columns of all units: base64 of little-endian numbers, decoded when first asked for.
(function () {
  "use strict";
  const KINDS = { f32: Float32Array, u8: Uint8Array, u16: Uint16Array, u32: Uint32Array };

  function bytes(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let at = 0; at < raw.length; at++) out[at] = raw.charCodeAt(at);
    return out;
  }
  un.numbers = (kind, text) => new KINDS[kind](bytes(text).buffer);

  // {count, has(name), names, values(name): typed array, words(name): {values, codes}, at(name, unit): number, string or null}
  un.columns = function (data) {
    const made = new Map();
    const source = data.columns;
    const has = (name) => Object.hasOwn(source, name);
    function values(name) {
      if (!made.has(name)) {
        const column = source[name];
        made.set(name, un.numbers(column.type === "dict" ? column.index : column.type, column.data));
      }
      return made.get(name);
    }
    return {
      count: data.count,
      names: Object.keys(source),
      has,
      values,
      isText: (name) => source[name].type === "dict",
      words: (name) => ({ values: source[name].values, codes: values(name) }),
      at(name, unit) {
        if (!has(name)) return null;
        const value = values(name)[unit];
        if (source[name].type === "dict") return source[name].values[value];
        return Number.isNaN(value) ? null : value;
      },
    };
  };

  // A small table {columns: {name: [values]}} as rows of objects.
  un.rows = function (table) {
    if (!table) return [];
    const names = Object.keys(table.columns);
    const length = names.length ? table.columns[names[0]].length : 0;
    return Array.from({ length }, (_, at) => Object.fromEntries(names.map((name) => [name, table.columns[name][at]])));
  };
})();
