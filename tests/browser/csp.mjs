// Each page's own policy names its <style> and <script> by hash. `node csp.mjs --write` renews the hashes after an edit;
// without it the answer is whether they are current (exit 1 if not). The browser tests ask the same.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync, realpathSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const PAGES = ["page.html", "dashboard.html", "admin.html"];
const file = (name) => fileURLToPath(new URL(`../../src/http/${name}`, import.meta.url));

function withCurrentHashes(page) {
  for (const kind of ["script", "style"]) {
    const blocks = [...page.matchAll(new RegExp(`^<${kind}>([^]*?)</${kind}>`, "gm"))];
    if (blocks.length !== 1) throw new Error(`${blocks.length} <${kind}> blocks, 1 expected`);
    const hash = createHash("sha256").update(blocks[0][1]).digest("base64");
    page = page.replace(new RegExp(`${kind}-src 'sha256-[^']*'`), `${kind}-src 'sha256-${hash}'`);
  }
  return page;
}

/** Fails unless the policy of the page, one of src/http, names what the page has. */
export function assertCurrentHashes(name) {
  const page = readFileSync(file(name), "utf8");
  assert.ok(page === withCurrentHashes(page), `${name}: the hashes in its Content-Security-Policy are stale: run node tests/browser/csp.mjs --write`);
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  for (const name of PAGES) {
    if (process.argv.includes("--write")) writeFileSync(file(name), withCurrentHashes(readFileSync(file(name), "utf8")));
    else try { assertCurrentHashes(name); } catch (error) { console.error(error.message); process.exitCode = 1; }
  }
}
