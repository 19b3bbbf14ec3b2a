// The try-it page in a real browser against the real gateway, as a person would use it.
// SHARDGATE_BIN names the gateway, CHROMIUM the browser (default: chromium from PATH); with SHARDGATE_SCREENSHOT=FILE
// the page is also photographed in the middle of a conversation.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join as path } from "node:path";
import { after, before, it } from "node:test";
import axe from "axe-core";
import { chromium } from "playwright-core";
import { startGateway } from "../clients/gateway.mjs";
import { assertCurrentHashes } from "./csp.mjs";

const WAIT_MS = 15_000;
// A short drain also makes the times short that clients are told to come back after.
const ARGS = ["--shards", "2", "--drain-timeout", "3s"];
let gateway, browser;

before(async () => {
  const executablePath = process.env.CHROMIUM ?? execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
  // Root needs --no-sandbox; the others keep a browser on a closed network from asking for its maker's hosts.
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
  gateway = await startGateway(ARGS);
});
after(async () => { await browser?.close(); await gateway?.stop("SIGKILL"); });

/** Opens the page; `complaints` collects everything the browser's console would show in red. */
async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 820 }, colorScheme: "light", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT_MS);
  const complaints = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(error.stack));
  await page.goto(gateway.http);
  return { context, page, complaints, alice: panel(page, "alice"), bob: panel(page, "bob") };
}

const panel = (page, name) => {
  const root = page.getByRole("region", { name, exact: true });
  return {
    root,
    connect: () => root.getByRole("button", { name: `Connect ${name}`, exact: true }).click(),
    disconnect: () => root.getByRole("button", { name: `Disconnect ${name}`, exact: true }).click(),
    is: (state) => root.and(page.locator(`[data-state="${state}"]`)).waitFor(),
    peer: (word) => root.locator(".presence").filter({ hasText: word }).waitFor(),
    say: async (text) => {
      const box = root.getByRole("textbox", { name: /^Message from/ });
      await box.fill(text);
      await box.press("Enter");
    },
    bubble: (text) => root.getByRole("log").getByRole("listitem").filter({ hasText: text }),
    note: (text) => root.locator(".note").filter({ hasText: text }).first(),
  };
};

it("carries a policy whose hashes are current", () => {
  assertCurrentHashes("page.html");
});

for (const colorScheme of ["light", "dark"]) {
  it(`connects both and shows a message with its latency and its ack (${colorScheme})`, async () => {
    const { context, page, complaints, alice, bob } = await open({ colorScheme });
    assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), colorScheme === "dark" ? "rgb(12, 14, 19)" : "rgb(243, 244, 248)");
    await alice.connect();
    await alice.is("open");
    await alice.peer("offline");
    await bob.connect();
    await bob.is("open");
    await alice.peer("online");
    await bob.peer("online");
    await alice.say("Hello <b>Bob</b> 🦀");
    const arrived = bob.bubble("Hello <b>Bob</b> 🦀");
    await arrived.waitFor();
    await arrived.locator(".lat").filter({ hasText: /^<?[\d.]+ m?s$/ }).waitFor();
    const sent = alice.bubble("Hello <b>Bob</b> 🦀");
    await sent.locator(".tick.delivered").waitFor();
    await sent.locator(".lat").filter({ hasText: /^ack / }).waitFor();
    assert.match(await alice.root.locator(".p50").textContent(), /m?s$/);
    assert.match(await alice.root.locator(".ids").textContent(), / on \S/);
    assert.deepEqual(complaints, []);
    await context.close();
  });
}

for (const colorScheme of ["light", "dark"]) {
  it(`has nothing that axe objects to (${colorScheme})`, async () => {
    const { context, page, alice } = await open({ colorScheme, reducedMotion: "reduce" });
    // Through the debugger, which no policy of the page holds back.
    const violations = async () => (await page.evaluate(`${axe.source}; axe.run()`)).violations
      .flatMap((violation) => violation.nodes.map((node) => `${violation.id}: ${node.target.join(" ")}: ${node.failureSummary}`));
    assert.deepEqual(await violations(), []);
    await alice.connect();
    await alice.is("open");
    await alice.say("is anybody there?");
    await alice.bubble("is anybody there?").locator(".tick.offline").waitFor();
    await alice.root.getByText("Raw frames").click();
    await alice.root.getByRole("button", { name: "Burst 100 messages from alice" }).click();
    await alice.bubble("100 of 100 acknowledged").waitFor();
    assert.deepEqual(await violations(), []);
    await context.close();
  });
}

it("shows presence as it changes", async () => {
  const { context, complaints, alice, bob } = await open();
  await alice.connect();
  await bob.connect();
  await alice.peer("online");
  await bob.disconnect();
  await bob.is("idle");
  await alice.peer("offline");
  await alice.say("too late");
  await alice.bubble("too late").locator(".tick.offline").waitFor();
  assert.deepEqual(complaints, []);
  await context.close();
});

it("sends a burst in order, to every device", async () => {
  const { context, page, complaints, alice, bob } = await open();
  await page.getByRole("button", { name: "Connect all" }).click();
  await Promise.all([alice.is("open"), bob.is("open")]);
  await bob.root.getByRole("button", { name: "Add device of bob" }).click();
  const second = panel(page, "bob, device 2");
  await second.is("open");
  await alice.root.getByRole("button", { name: "Burst 100 messages from alice" }).click();
  for (const device of [bob, second]) await device.bubble("100 of 100 received").filter({ hasText: "in order" }).waitFor();
  await alice.bubble("100 of 100 acknowledged").filter({ hasText: "100 delivered" }).waitFor();
  await second.root.getByRole("button", { name: "Remove bob, device 2" }).click();
  await second.root.waitFor({ state: "detached" });
  assert.deepEqual(complaints, []);
  await context.close();
});

it("renames a user, shows raw frames and errors", async () => {
  const { context, page, complaints, alice, bob } = await open();
  await page.getByRole("button", { name: "Connect all" }).click();
  await Promise.all([alice.is("open"), bob.is("open")]);
  await bob.root.getByRole("textbox", { name: "User name" }).fill("Bøb");
  await bob.root.getByRole("textbox", { name: "User name" }).press("Enter");
  const renamed = panel(page, "Bøb");
  await renamed.is("open");
  await alice.peer("online");
  await alice.root.getByText("Raw frames").click();
  await alice.say("to the new name");
  await renamed.bubble("to the new name").waitFor();
  await alice.root.getByRole("list", { name: "Raw frames of alice" }).getByText('"to":"Bøb","content":"to the new name"').waitFor();
  await alice.root.getByLabel("To", { exact: true }).fill("x".repeat(64));
  await alice.say("🦀".repeat(10));
  await alice.bubble("🦀".repeat(10)).locator(".tick.offline").waitFor();
  assert.deepEqual(complaints, []);
  await context.close();
});

it("comes back by itself after the gateway was restarted on the same port", async () => {
  const { context, complaints, alice, bob } = await open();
  await alice.connect();
  await bob.connect();
  await alice.peer("online");
  assert.deepEqual(complaints, []);
  const { port } = gateway;
  // The page leaves when the drain asks it to, so the gateway has nobody left to wait for.
  await gateway.stop("SIGTERM");
  await alice.note(/Leaving within/).waitFor();
  await Promise.all([alice.is("waiting"), bob.is("waiting")]);
  gateway = await startGateway(ARGS, port);
  await Promise.all([alice.is("open"), bob.is("open")]);
  await alice.note("Connected again").waitFor();
  await alice.peer("online");
  await alice.say("back again");
  await bob.bubble("back again").waitFor();
  // While nobody listened, the browser itself reports each failed try; nothing else may have gone wrong.
  assert.deepEqual(complaints.filter((text) => !/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|Unexpected response code: 503/.test(text)), []);
  await context.close();
});

it("fits a phone without sideways scrolling", async () => {
  const { context, page, complaints } = await open({ viewport: { width: 360, height: 740 } });
  await page.getByRole("button", { name: "Connect all" }).click();
  await panel(page, "alice").is("open");
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  assert.deepEqual(complaints, []);
  await context.close();
});

it("can be photographed in the middle of a conversation", async () => {
  const { context, page, complaints, alice, bob } = await open({ viewport: { width: 1280, height: 800 }, reducedMotion: "reduce" });
  await page.getByRole("button", { name: "Connect all" }).click();
  await Promise.all([alice.is("open"), bob.is("open")]);
  for (const [from, to, text] of [[alice, bob, "Hi Bob, are you there?"], [bob, alice, "Right here."], [alice, bob, "Good. Here come a hundred at once:"]]) {
    await from.say(text);
    await to.bubble(text).waitFor();
    await from.bubble(text).locator(".tick.delivered").waitFor();
  }
  await alice.root.getByRole("button", { name: "Burst 100 messages from alice" }).click();
  await bob.bubble("100 of 100 received").filter({ hasText: "one way" }).waitFor();
  await bob.say("All of them, and in order.");
  await alice.bubble("All of them, and in order.").waitFor();
  await alice.peer("online");
  await page.locator('#stats[data-stale="false"]').waitFor();
  const folder = mkdtempSync(path(tmpdir(), "shardgate-page-"));
  try {
    const file = process.env.SHARDGATE_SCREENSHOT ?? path(folder, "try-it.png");
    await page.screenshot({ path: file });
    assert.ok(readFileSync(file).length < 200_000);
  } finally { rmSync(folder, { recursive: true }); }
  assert.deepEqual(complaints, []);
  await context.close();
});
