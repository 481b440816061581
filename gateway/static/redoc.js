// Redoc's logo is the one file that it would load from outside. Redoc hides an image that is none.
const { setAttribute } = Element.prototype;
HTMLImageElement.prototype.setAttribute = function (name, value) {
  const isOutside = name === "src" && /^https?:/.test(value);
  setAttribute.call(this, name, isOutside ? "data:," : value);
};
Object.defineProperty(HTMLImageElement.prototype, "src", {
  get() { return this.getAttribute("src") ?? ""; },
  set(value) { this.setAttribute("src", value); },
});

const typography = { fontFamily: "system-ui, sans-serif", headings: { fontFamily: "system-ui, sans-serif" } };
Redoc.init("/openapi.json", { theme: { typography } }, document.getElementById("page"));
