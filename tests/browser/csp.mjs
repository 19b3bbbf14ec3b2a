// The page's own policy names its <style> and <script> by hash. `node csp.mjs --write` renews the hashes after an edit;
// without it the answer is whether they are current (exit 1 if not). The browser test asks the same.
import { createHash } from "node:crypto";
import { readFileSync, realpathSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const PAGE = fileURLToPath(new URL("../../src/http/page.html", import.meta.url));

export function withCurrentHashes(page) {
  for (const kind of ["script", "style"]) {
    const blocks = [...page.matchAll(new RegExp(`^<${kind}>([^]*?)</${kind}>`, "gm"))];
    if (blocks.length !== 1) throw new Error(`${blocks.length} <${kind}> blocks, 1 expected`);
    const hash = createHash("sha256").update(blocks[0][1]).digest("base64");
    page = page.replace(new RegExp(`${kind}-src 'sha256-[^']*'`), `${kind}-src 'sha256-${hash}'`);
  }
  return page;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const page = readFileSync(PAGE, "utf8");
  const wanted = withCurrentHashes(page);
  if (process.argv.includes("--write")) writeFileSync(PAGE, wanted);
  else if (page !== wanted) {
    console.error("page.html: the hashes in its Content-Security-Policy are stale: run node tests/browser/csp.mjs --write");
    process.exit(1);
  }
}
