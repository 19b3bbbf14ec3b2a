// All pages through a proxy that serves the gateway below a path, as one behind https://host/chat/ does, and on a phone.
// SHARDGATE_BIN names the gateway, CHROMIUM the browser (default: chromium from PATH).
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createServer, request } from "node:http";
import { connect } from "node:net";
import { after, before, it } from "node:test";
import { chromium } from "playwright-core";
import { startGateway } from "../clients/gateway.mjs";

const WAIT_MS = 15_000, TOKEN = "a-token-for-tests-of-32-bytes-00", PREFIX = "/some/chat";
let gateway, browser, proxy, outside;

/** Takes PREFIX off every path and passes the rest on, upgrades included; what is not below it is 404. */
function startProxy(port) {
  const inner = (url) => url.startsWith(PREFIX + "/") ? url.slice(PREFIX.length) : null;
  const server = createServer((incoming, answer) => {
    const path = inner(incoming.url);
    if (path === null) { answer.writeHead(404).end(); return; }
    const { method, headers } = incoming;
    const passed = request({ host: "127.0.0.1", port, method, path, headers }, (response) => {
      answer.writeHead(response.statusCode, response.headers);
      response.pipe(answer);
    });
    passed.on("error", () => answer.destroy());
    incoming.pipe(passed);
  });
  server.on("upgrade", (incoming, client, head) => {
    const path = inner(incoming.url);
    if (path === null) { client.end("HTTP/1.1 404 Not Found\r\n\r\n"); return; }
    const upstream = connect(port, "127.0.0.1", () => {
      const fields = incoming.rawHeaders.map((text, i) => i % 2 ? `${text}\r\n` : `${text}: `).join("");
      upstream.write(`GET ${path} HTTP/1.1\r\n${fields}\r\n`);
      upstream.write(head);
      upstream.pipe(client).pipe(upstream);
    });
    for (const [socket, other] of [[client, upstream], [upstream, client]]) { socket.on("error", () => other.destroy()); socket.on("close", () => other.destroy()); }
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

before(async () => {
  const executablePath = process.env.CHROMIUM ?? execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
  gateway = await startGateway(["--shards", "2", "--admin-token", TOKEN]);
  proxy = await startProxy(Number(new URL(gateway.http).port));
  outside = `http://127.0.0.1:${proxy.address().port}${PREFIX}`;
});
after(async () => { await browser?.close(); proxy?.closeAllConnections(); proxy?.close(); await gateway?.stop("SIGKILL"); });

async function open(address, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 820 }, ...options });
  const page = await context.newPage(), complaints = [], strays = [];
  page.setDefaultTimeout(WAIT_MS);
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(error.stack));
  page.on("request", (asked) => { if (asked.url().startsWith("http") && !asked.url().startsWith(outside)) strays.push(asked.url()); });
  await page.goto(address);
  return { context, page, complaints, strays };
}

it("serves all pages below a path, and they find the gateway and each other there", async () => {
  const { context, page, complaints, strays } = await open(outside + "/");
  for (const name of ["alice", "bob"]) await page.getByRole("button", { name: `Connect ${name}`, exact: true }).click();
  const alice = page.getByRole("region", { name: "alice", exact: true }), bob = page.getByRole("region", { name: "bob", exact: true });
  await alice.locator(".presence").filter({ hasText: "online" }).waitFor();
  const box = alice.getByRole("textbox", { name: /^Message from/ });
  await box.fill("below a path");
  await box.press("Enter");
  await bob.getByRole("log").getByText("below a path").waitFor();
  await page.locator("#s-connections").filter({ hasText: /^2$/ }).waitFor();

  const link = (name) => page.getByRole("navigation", { name: "Pages of the gateway" }).getByRole("link", { name });
  await link("Dashboard").click();
  assert.equal(page.url(), outside + "/dashboard");
  await page.getByRole("status").filter({ hasText: /^Ready$/ }).waitFor();
  assert.equal(await link("Dashboard").getAttribute("aria-current"), "page");
  assert.deepEqual(complaints, []);
  await link("Administration").click();
  assert.equal(page.url(), outside + "/admin/");
  for (const address of ["/admin/", "/admin"]) {
    await page.goto(outside + address);
    // The tab keeps the token: it is the same page.
    if (address === "/admin/") {
      await page.locator("#token").fill(TOKEN);
      await page.getByRole("button", { name: "Enter" }).click();
    }
    await page.getByText(/^Page 1: \d+ connections?$|^No connection with a user/).first().waitFor();
    await page.locator("#state").filter({ hasText: "Serving" }).waitFor();
    await page.getByLabel("To", { exact: true }).fill("nobody");
    await page.locator("#message-content").fill("1");
    await page.getByRole("button", { name: "Send", exact: true }).click();
    await page.getByText(/^Offline: /).waitFor();
  }
  await link("Try it").click();
  assert.equal(page.url(), outside + "/");
  assert.deepEqual(strays, []);
  // The answer to who comes without a token is 401, and a browser's console reports it.
  assert.deepEqual(complaints.filter((text) => !text.includes("status of 401")), []);
  await context.close();
});

it("has no field into which a phone would zoom", async () => {
  for (const path of ["/", "/admin/"]) {
    const { context, page } = await open(outside + path, { viewport: { width: 360, height: 740 }, hasTouch: true });
    const sizes = await page.evaluate(() => [...document.querySelectorAll("input:not([type=radio]):not([type=checkbox]), textarea, select")].map((field) => [field.id || field.className, parseFloat(getComputedStyle(field).fontSize)]));
    assert.ok(sizes.length > 0);
    assert.deepEqual(sizes.filter(([, size]) => size < 16), []);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${path} scrolls sideways`);
    await context.close();
  }
});
