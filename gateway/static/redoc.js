// Redoc's logo is the one image that it would load from outside.
const { setAttribute } = Element.prototype;
HTMLImageElement.prototype.setAttribute = function (name, value) {
  if (name !== "src" || !/^https?:/.test(value)) setAttribute.call(this, name, value);
};

const typography = { fontFamily: "system-ui, sans-serif", headings: { fontFamily: "system-ui, sans-serif" } };
Redoc.init("/openapi.json", { theme: { typography } }, document.getElementById("page"));
