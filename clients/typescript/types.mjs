/** Writes src/schemas.ts from the schemas of a server's OpenAPI description: a path or an address. */

import { readFile, writeFile } from "node:fs/promises";
import openapiTS, { astToString } from "openapi-typescript";

const [from = "http://127.0.0.1:8000/openapi.json", to = "src/schemas.ts"] = process.argv.slice(2);
const text = /^https?:/.test(from) ? await (await fetch(from)).text() : await readFile(from, "utf8");
const untitled = (name, value) => (name === "title" && typeof value === "string" ? undefined : value);
const { openapi, info, components } = JSON.parse(text, untitled);
info.title = "";
const nodes = await openapiTS({ openapi, info, components, paths: {} });
await writeFile(to, `// Written by \`npm run types\` from the server's OpenAPI description.\n${astToString(nodes)}`);
