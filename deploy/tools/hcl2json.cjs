// Prints the given Terraform files as one JSON object by name, read with HashiCorp's own parser.
const { readFileSync } = require("node:fs");
const { parse } = require("@cdktn/hcl2json");

(async () => {
  const files = {};
  for (const name of process.argv.slice(2)) files[name] = await parse(name, readFileSync(name, "utf8"));
  process.stdout.write(JSON.stringify(files));
})();
