// The dashboard in a real browser against the real gateway, while clients talk.
// SHARDGATE_BIN names the gateway, CHROMIUM the browser (default: chromium from PATH); with SHARDGATE_SCREENSHOT=FILE
// the dashboard is also photographed.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, it } from "node:test";
import axe from "axe-core";
import { chromium } from "playwright-core";
import WebSocket from "ws";
import { startGateway, within } from "../clients/gateway.mjs";
import { assertCurrentHashes } from "./csp.mjs";

const WAIT_MS = 15_000, CLIENTS = 8, SEND_MS = 20, CHANNELS = 2;
const ARGS = ["--shards", "2", "--drain-timeout", "3s"];
let gateway, browser, crowd;

before(async () => {
  const executablePath = process.env.CHROMIUM ?? execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
  // As in page.test.mjs: root needs --no-sandbox; the others keep a browser on a closed network from asking outside.
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
  gateway = await startGateway(ARGS);
  crowd = await talk();
});
after(async () => { crowd?.leave(); await browser?.close(); await gateway?.stop("SIGKILL"); });

/** Clients that each write to all others in turn, so that messages stay on a shard and cross to the other one; each is in
 *  all channels, and they take turns to publish. */
async function talk() {
  const names = Array.from({ length: CLIENTS }, (_, i) => `user-${i}`);
  const clients = await Promise.all(names.map((name) => within(WAIT_MS, `${name} to be welcome`, new Promise((resolve, reject) => {
    const client = new WebSocket(`${gateway.ws}?user=${name}`, "shardgate.v1");
    client.once("message", () => resolve(client));
    client.on("error", reject);
  }))));
  for (const client of clients) for (let n = 0; n < CHANNELS; n++) client.send(JSON.stringify({ type: "subscribe", channel: `room-${n}` }));
  let turn = 0;
  const timer = setInterval(() => {
    turn++;
    clients.forEach((client, i) => client.readyState === WebSocket.OPEN && client.send(JSON.stringify({ type: "message", to: names[(i + turn) % CLIENTS], content: "hello" })));
    const publisher = clients[turn % CLIENTS];
    if (publisher.readyState === WebSocket.OPEN) publisher.send(JSON.stringify({ type: "publish", channel: `room-${turn % CHANNELS}`, content: "hello, all" }));
  }, SEND_MS);
  return { clients, leave() { clearInterval(timer); for (const client of clients) client.terminate(); } };
}

/** `complaints` collects everything the browser's console would show in red; `asked` the paths that were fetched;
 *  `without`: metrics that this gateway does not have. */
async function open({ without, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 960 }, colorScheme: "light", reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT_MS);
  const complaints = [], asked = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(error.stack));
  page.on("request", (request) => asked.push(new URL(request.url()).pathname));
  if (without) await page.route("**/metrics", async (route) => {
    const answer = await route.fetch(), text = await answer.text();
    await route.fulfill({ response: answer, body: text.split("\n").filter((line) => !without.test(line)).join("\n") });
  });
  await page.goto(`${gateway.http}/dashboard`);
  return { context, page, complaints, asked };
}

const tile = (page, name) => page.locator(".tile").filter({ has: page.locator("dt", { hasText: new RegExp(`^${name}$`) }) }).locator(".now");
const legend = (page, name) => page.locator(".legend li").filter({ has: page.locator(".name", { hasText: new RegExp(`^${name}$`) }) }).locator(".now");
const state = (page, words) => page.getByRole("status").filter({ hasText: words }).waitFor();
const shown = (locator, pattern) => locator.filter({ hasText: pattern }).waitFor();
const cells = (page) => page.locator("#shards tbody tr").evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
/** Waits until `check` passes; its last failure otherwise. */
async function eventually(check) {
  const deadline = Date.now() + WAIT_MS;
  for (;;) {
    try { return await check(); } catch (error) { if (Date.now() > deadline) throw error; }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}
const SOME_TIME = /^[\d.]+ (µs|ms|s)$/, POSITIVE = /^(?=.*[1-9])[\d.,]+k?$/;

it("carries a policy whose hashes are current", () => assertCurrentHashes("dashboard.html"));

it("shows what the gateway does: tiles, latency, shards", async () => {
  const { context, page, complaints, asked } = await open();
  await state(page, /^Ready$/);
  await shown(tile(page, "Connections"), new RegExp(`^${CLIENTS}$`));
  await shown(tile(page, "Users"), new RegExp(`^${CLIENTS}$`));
  for (const name of ["Messages in", "Messages out"]) await shown(tile(page, name), POSITIVE);
  for (const name of ["Received", "Sent", "Memory"]) await shown(tile(page, name), /^[\d.]+ [kMG]?B$/);
  // Whole turns of the crowd per second, as far as a busy machine keeps its timers.
  await eventually(async () => {
    const rate = Number((await tile(page, "Messages in").textContent()).replace(",", ""));
    assert.ok(rate > 20 && rate <= CLIENTS * 1000 / SEND_MS * 3, `${rate} messages per second`);
  });
  await shown(tile(page, "Subscriptions"), new RegExp(`^${CLIENTS * CHANNELS}$`));
  await shown(page.locator(".tile .more"), new RegExp(`^${CHANNELS} to ${2 * CHANNELS} channels$`));
  // Every publication reaches everybody.
  await eventually(async () => {
    const [publications, deliveries] = await Promise.all(["Publications", "Deliveries"].map(async (name) => Number((await tile(page, name).textContent()).replace(",", ""))));
    assert.ok(publications > 5 && deliveries > publications * CLIENTS / 2, `${publications} publications and ${deliveries} deliveries per second`);
  });
  for (const name of ["Delivery p99", "Fan-out p99"]) await shown(tile(page, name), SOME_TIME);
  for (const name of ["local p50", "local p99", "shard p50", "shard p99", "fan-out p50", "fan-out p99", "turn p99"]) await shown(legend(page, name), SOME_TIME);
  assert.equal(await legend(page, "gateway p99").isVisible(), false);
  assert.match(await page.getByRole("slider", { name: /^Latency/ }).getAttribute("aria-valuetext"), /^Now: .*local p99 [\d.]+ /);
  await eventually(async () => {
    const rows = await cells(page), column = (n) => rows.map((row) => Number(row[n].replace(",", "")));
    assert.equal(rows.length, 2);
    assert.equal(column(2).reduce((a, b) => a + b), CLIENTS, "connections of all shards");
    assert.equal(column(3).reduce((a, b) => a + b), CLIENTS, "users of all shards");
    assert.ok(column(4).some((n) => n > 0) && column(5).some((n) => n > 0), "messages per second");
    assert.ok(column(6).some((n) => n > 0), "syscalls per message");
    assert.equal(column(8).reduce((a, b) => a + b), CLIENTS * CHANNELS, "subscriptions of all shards");
    assert.ok(Math.max(...column(7)) === CHANNELS && column(9).some((n) => n > 0) && column(10).some((n) => n > 0), "channels");
    assert.ok(rows.every((row) => SOME_TIME.test(row[11])), "turn p99");
    assert.ok(rows.every((row) => /^\d+$/.test(row[12] + row[13]) && row[14] !== "–"), "lanes, last turn");
  });
  const facts = await page.locator("#facts dd").allTextContents();
  assert.match(facts.join(" "), /^\S+ \d+\.\d+\.\d+ (ring|epoll) 2 \d+ (s|min)$/);
  assert.deepEqual([...new Set(asked)].sort(), ["/dashboard", "/metrics", "/readyz", "/stats"]);
  if (process.env.SHARDGATE_SCREENSHOT) await page.screenshot({ path: process.env.SHARDGATE_SCREENSHOT, fullPage: true });
  assert.deepEqual(complaints, []);
  await context.close();
});

it("fills its pictures from the first seconds on, and shows values of before to pointer and keyboard", async () => {
  const { context, page, complaints } = await open();
  await shown(tile(page, "Messages in"), POSITIVE);
  const spark = page.getByRole("slider", { name: "Messages in over time" }), box = page.locator(".tile").filter({ has: spark });
  // Whoever has looked for some seconds sees a line from side to side, and not a dot at the right.
  await eventually(async () => {
    const [, left, right] = /^M(-?[\d.]+) .*L([\d.]+) [\d.]+$/.exec(await box.locator("path.series").getAttribute("d")) ?? assert.fail("no line");
    assert.ok(Number(left) < 1 && Number(right) > 99, `from ${left} to ${right}`);
  });
  await spark.hover({ position: { x: 1, y: 10 } });
  await shown(box.locator(".more"), /^\d+ s ago$/);
  assert.notEqual(await box.locator("path.cross").getAttribute("d"), "");
  await page.mouse.move(0, 0);
  await shown(box.locator(".more"), /^per second$/);
  const chart = page.getByRole("slider", { name: /^Messages per second/ });
  await chart.focus();
  await page.keyboard.press("ArrowLeft");
  await eventually(async () => assert.match(await chart.getAttribute("aria-valuetext"), /^\d+ s ago: in [\d.,]+, out [\d.,]+, /));
  await page.keyboard.press("Home");
  assert.equal(await chart.getAttribute("aria-valuenow"), "0");
  await page.keyboard.press("Escape");
  await eventually(async () => assert.match(await chart.getAttribute("aria-valuetext"), /^Now: in /));
  assert.deepEqual(complaints, []);
  await context.close();
});

it("shows a dash for what the gateway does not count", async () => {
  const { context, page, complaints } = await open({ without: /^(# \w+ )?shardgate_(channels|subscriptions|publications|deliveries|fanout)_?/ });
  await shown(tile(page, "Messages in"), POSITIVE);
  for (const name of ["Subscriptions", "Publications", "Deliveries", "Fan-out p99"]) assert.equal(await tile(page, name).textContent(), "–");
  for (const name of ["publications", "deliveries", "fan-out p50", "fan-out p99"]) assert.equal(await legend(page, name).textContent(), "–");
  for (const row of await cells(page)) assert.deepEqual(row.slice(7, 11), ["–", "–", "–", "–"]);
  await state(page, /^Ready$/);
  assert.deepEqual(complaints, []);
  await context.close();
});

it("tells why connections closed and handshakes were refused, and nothing that did not happen", async () => {
  const { context, page, complaints } = await open();
  const closed = page.getByRole("region", { name: "Closed connections" });
  await page.getByRole("region", { name: "Dropped" }).getByText("None since the start.").waitFor();
  const client = new WebSocket(`${gateway.ws}?user=short`, "shardgate.v1");
  await within(WAIT_MS, "a short visit", new Promise((resolve) => {
    client.once("message", () => client.send(Buffer.from([1]), { binary: true }));
    client.on("close", resolve);
  }));
  await closed.getByRole("row", { name: /^1003 binary frame \d+ \d+$/ }).waitFor();
  await within(WAIT_MS, "a refusal", fetch(`${gateway.http}/ws?user=nobody`));
  await page.getByRole("region", { name: "Refused handshakes" }).getByRole("row", { name: /^not an upgrade .* 1 \d+$/ }).waitFor();
  assert.equal(await closed.getByRole("row", { name: /^3008/ }).count(), 0);
  assert.deepEqual(complaints, []);
  await context.close();
});

for (const colorScheme of ["light", "dark"]) {
  it(`has nothing that axe objects to (${colorScheme})`, async () => {
    const { context, page, complaints } = await open({ colorScheme });
    await shown(tile(page, "Messages in"), POSITIVE);
    // Through the debugger, which no policy of the page holds back.
    const violations = (await page.evaluate(`${axe.source}; axe.run()`)).violations
      .flatMap((violation) => violation.nodes.map((node) => `${violation.id}: ${node.target.join(" ")}: ${node.failureSummary}`));
    assert.deepEqual(violations, []);
    assert.deepEqual(complaints, []);
    await context.close();
  });
}

it("fits a phone without sideways scrolling", async () => {
  const { context, page, complaints } = await open({ viewport: { width: 360, height: 740 } });
  await shown(tile(page, "Messages in"), POSITIVE);
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  assert.deepEqual(complaints, []);
  await context.close();
});

it("asks nothing while it is hidden, and goes on when it is seen", async () => {
  const { context, page, complaints, asked } = await open();
  await shown(tile(page, "Messages in"), POSITIVE);
  const hide = (hidden) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  await hide(true);
  const before = asked.length;
  await new Promise((resolve) => setTimeout(resolve, 2_500));
  assert.equal(asked.length, before);
  await hide(false);
  await eventually(() => assert.ok(asked.length >= before + 6));
  await shown(tile(page, "Messages in"), POSITIVE);
  assert.deepEqual(complaints, []);
  await context.close();
});

it("says so when the gateway drains or is gone, and starts over with the next one", async () => {
  const { context, page, complaints } = await open();
  await shown(tile(page, "Messages in"), POSITIVE);
  // Every text of the page from now on: a counter that begins anew must not show as a number that cannot be.
  await page.evaluate(() => {
    window.nonsense = [];
    new MutationObserver(() => {
      const text = document.querySelector("main").innerText;
      if (/NaN|Infinity|undefined|null|[-−]\s?\d/.test(text)) window.nonsense.push(text);
      for (const path of document.querySelectorAll("path")) if (/NaN|Infinity/.test(path.getAttribute("d"))) window.nonsense.push(path.getAttribute("d"));
    }).observe(document.querySelector("main"), { subtree: true, childList: true, characterData: true, attributes: true });
  });
  const { port } = gateway, most = CLIENTS * 1000 / SEND_MS * 3;
  const stopped = gateway.stop("SIGTERM");
  await state(page, /^Draining$/);
  await stopped;
  crowd.leave();
  await state(page, /^No answer/);
  await page.locator('main[data-stale="true"]').waitFor();
  gateway = await startGateway(ARGS, port);
  await state(page, /^Ready$/);
  await shown(tile(page, "Connections"), /^0$/);
  await shown(tile(page, "Messages in"), /^0$/);
  crowd = await talk();
  await shown(tile(page, "Connections"), new RegExp(`^${CLIENTS}$`));
  await shown(tile(page, "Messages in"), POSITIVE);
  assert.ok(Number((await tile(page, "Messages in").textContent()).replace(",", "")) <= most);
  await page.getByRole("region", { name: "Closed connections" }).getByText("None since the start.").waitFor();
  assert.deepEqual(await page.evaluate(() => window.nonsense), []);
  // The browser itself reports what it could not fetch; nothing else may have gone wrong.
  assert.deepEqual(complaints.filter((text) => !/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|status of 503/.test(text)), []);
  await context.close();
});
