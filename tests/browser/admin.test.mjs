// The admin page in a real browser against the real gateway, as an operator would use it, while real clients listen.
// SHARDGATE_BIN names the gateway, CHROMIUM the browser (default: chromium from PATH); with SHARDGATE_SCREENSHOT=FILE
// the page is also photographed.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, it } from "node:test";
import axe from "axe-core";
import { chromium } from "playwright-core";
import WebSocket from "ws";
import { startGateway, within } from "../clients/gateway.mjs";
import { assertCurrentHashes } from "./csp.mjs";

const WAIT_MS = 15_000, TOKEN = "a-token-for-tests-of-32-bytes-00", PAGE = 50;
const ARGS = ["--shards", "2", "--drain-timeout", "3s"];
let gateway, browser;

before(async () => {
  const executablePath = process.env.CHROMIUM ?? execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
  // As in page.test.mjs: root needs --no-sandbox; the others keep a browser on a closed network from asking outside.
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
  gateway = await startGateway([...ARGS, "--admin-token", TOKEN]);
});
after(async () => { await browser?.close(); await gateway?.stop("SIGKILL"); });

/** A client that is welcome: `id`, `next(type)` for its next frame of that type as text, `closed` for the code it is closed with. */
async function connect(user, where = gateway) {
  const socket = new WebSocket(`${where.ws}?user=${encodeURIComponent(user)}`, "shardgate.v1"), frames = [], waiting = [];
  const next = (type) => within(WAIT_MS, `${type} for ${user}`, new Promise((resolve) => {
    const index = frames.findIndex((frame) => JSON.parse(frame).type === type);
    if (index >= 0) resolve(frames.splice(index, 1)[0]); else waiting.push([type, resolve]);
  }));
  socket.on("message", (data) => {
    const frame = data.toString(), { type } = JSON.parse(frame), index = waiting.findIndex(([wanted]) => wanted === type);
    if (index >= 0) waiting.splice(index, 1)[0][1](frame); else frames.push(frame);
  });
  socket.on("error", () => {});
  const end = new Promise((resolve) => socket.on("close", resolve));
  const { connId } = JSON.parse(await next("welcome"));
  return { id: connId, user, next, send: (frame) => socket.send(JSON.stringify(frame)), closed: () => within(WAIT_MS, `the end of ${user}`, end), isOpen: () => socket.readyState === WebSocket.OPEN, leave: () => { socket.terminate(); return end; } };
}

/** Waits until the gateway has noticed that somebody left: `path` of its API says so. */
async function noticed(path, check) {
  const deadline = Date.now() + WAIT_MS;
  for (;;) {
    const answer = await fetch(gateway.http + path, { headers: { Authorization: `Bearer ${TOKEN}` } });
    if (check(answer.status, await answer.json())) return;
    assert.ok(Date.now() < deadline, `${path} is still as it was`);
  }
}
const nobodyIsThere = () => noticed("/stats", (_, stats) => stats.connections === 0);

/** Opens the page. `complaints` collects everything the browser's console would show in red, but for refusals that a test
 *  provokes, which the browser itself reports; `asked` every address that was fetched. */
async function open({ where = gateway, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 960 }, colorScheme: "light", reducedMotion: "reduce", ...options });
  const complaints = [], asked = [];
  context.on("request", (request) => asked.push(request.url()));
  const tab = async () => {
    const page = await context.newPage();
    page.setDefaultTimeout(WAIT_MS);
    page.on("console", (message) => { if (["error", "warning"].includes(message.type()) && !/status of (400|401|404|413)|ERR_CONNECTION_REFUSED/.test(message.text())) complaints.push(message.text()); });
    page.on("pageerror", (error) => complaints.push(error.stack));
    const answer = await page.goto(`${where.http}/admin/`);
    return { page, answer };
  };
  return { context, complaints, asked, tab, ...await tab() };
}

async function giveToken(page, token = TOKEN) {
  await page.getByLabel("Token", { exact: true }).fill(token);
  await page.getByRole("button", { name: "Enter" }).click();
}
/** The page with the right token given. */
async function enter(options) {
  const opened = await open(options);
  await giveToken(opened.page);
  await card(opened.page, "Connections").waitFor();
  return opened;
}

const card = (page, name) => page.getByRole("region", { name, exact: true }).or(page.getByRole("form", { name, exact: true }));
const result = (page, name, pattern) => card(page, name).locator(".result").filter({ hasText: pattern }).waitFor();
const position = (page, pattern) => page.locator("#position").filter({ hasText: pattern }).waitFor();
const rows = (page) => page.locator("#connections tbody tr");
const ids = (page) => rows(page).locator("th").allTextContents();
const isAsked = (page) => page.getByLabel("Token", { exact: true }).waitFor();
async function violations(page) {
  // Through the debugger, which no policy of the page holds back.
  return (await page.evaluate(`${axe.source}; axe.run()`)).violations
    .flatMap((violation) => violation.nodes.map((node) => `${violation.id}: ${node.target.join(" ")}: ${node.failureSummary}`));
}

it("carries a policy whose hashes are current", () => assertCurrentHashes("admin.html"));

it("asks for the token, keeps it to its tab, and forgets it", async () => {
  const alice = await connect("alice");
  const { context, page, answer, complaints, asked, tab } = await open();
  assert.equal(answer.status(), 401);
  await isAsked(page);
  assert.equal(await page.locator("#token").getAttribute("type"), "password");
  assert.equal(await page.evaluate(() => document.activeElement.id), "token");
  for (const name of ["Connections", "Send a message", "Drain"]) assert.equal(await card(page, name).count(), 0, name);
  assert.deepEqual(asked.filter((url) => !url.startsWith("data:")), [`${gateway.http}/admin/`], "nothing is asked without a token");

  await giveToken(page, "wrong");
  await page.getByRole("alert").filter({ hasText: "401 unauthorized: this needs Authorization: Bearer" }).waitFor();
  await giveToken(page, "kein Schlüssel");
  await page.getByRole("alert").filter({ hasText: "visible ASCII" }).waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  assert.equal(await rows(page).count(), 0);

  await page.getByLabel("Token", { exact: true }).fill(` ${TOKEN} `);
  await page.getByLabel("Token", { exact: true }).press("Enter");
  await rows(page).filter({ hasText: alice.id }).waitFor();
  assert.equal(await page.getByLabel("Token", { exact: true }).isVisible(), false);
  assert.equal(await page.locator("#token").inputValue(), "");
  await page.reload();
  await rows(page).filter({ hasText: alice.id }).waitFor();
  assert.deepEqual(await page.evaluate(() => [Object.values(sessionStorage), localStorage.length, document.cookie]), [[TOKEN], 0, ""]);
  assert.equal(page.url(), `${gateway.http}/admin/`);
  const other = await tab();
  await isAsked(other.page);
  await other.page.close();

  await page.getByLabel("To", { exact: true }).fill("alice");
  await page.getByRole("button", { name: "Forget the token" }).click();
  await isAsked(page);
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  const left = await page.evaluate(() => document.body.innerHTML + [...document.querySelectorAll("input, textarea")].map((field) => field.value).join());
  for (const secret of [TOKEN, alice.id, "127.0.0.1"]) assert.ok(!left.includes(secret), `${secret} is still there`);
  await page.reload();
  await isAsked(page);
  assert.ok(asked.every((url) => !url.includes(TOKEN)));
  assert.deepEqual([...new Set(asked.filter((url) => !url.startsWith("data:")).map((url) => new URL(url).pathname))].sort(), ["/admin/", "/admin/connections", "/stats"]);
  assert.deepEqual(complaints, []);
  await context.close();
  await alice.leave();
});

it("lists connections page by page, everybody's or one user's", async () => {
  await nobodyIsThere();
  const strange = `<b>ä</b> "%2F & 😀`, crowd = await Promise.all(Array.from({ length: PAGE + 9 }, (_, i) => connect(`user-${i}`)));
  const two = [await connect(strange), await connect(strange)], all = [...crowd, ...two].map((client) => client.id).sort();
  two[1].send({ type: "heartbeat" });
  await two[1].next("heartbeat");
  const { context, page, complaints } = await enter();
  const button = (name) => page.getByRole("group", { name: "Pages of connections" }).getByRole("button", { name });
  await position(page, /^Page 1: 50 connections, and more$/);
  const first = await ids(page);
  await button("Next").click();
  await position(page, /^Page 2: 11 connections$/);
  assert.deepEqual([...first, ...await ids(page)].sort(), all);
  assert.equal(await button("Next").getAttribute("aria-disabled"), "true");
  assert.equal(await page.evaluate(() => document.activeElement.id), "next", "the focus stays");
  await button("Previous").click();
  await position(page, /^Page 1: /);
  assert.deepEqual(await ids(page), first);
  await button("Next").click();
  await position(page, /^Page 2: /);
  await button("First").click();
  await position(page, /^Page 1: /);
  assert.equal(await button("Previous").getAttribute("aria-disabled"), "true");

  await page.getByLabel("User").first().fill(strange);
  await page.getByRole("button", { name: "Show" }).click();
  await position(page, `Page 1: 2 connections of ${strange}`);
  assert.deepEqual((await ids(page)).sort(), two.map((client) => client.id).sort());
  const cells = await rows(page).filter({ hasText: two[1].id }).locator("td").allTextContents();
  assert.equal(cells[0], strange);
  assert.match(cells[1], /^[01]$/);
  assert.match(cells[2], /^127\.0\.0\.1:\d+$/);
  for (const since of cells.slice(3, 5)) assert.match(since, /^\d+ s$/);
  assert.deepEqual(cells.slice(5), ["1", "2", "0 B", "Close…"]);
  assert.equal(await page.locator("#connections b").count(), 0);
  await two[0].leave();
  await page.locator("#filter-user").fill("nobody");
  await page.locator("#filter-user").press("Enter");
  await page.getByText("No connection with a user.").waitFor();
  await page.locator("#filter-user").fill("x".repeat(129));
  await page.locator("#filter-user").press("Enter");
  await result(page, "Connections", "400 badRequest: a user id is 1 to 128 bytes");
  await page.locator("#filter-user").fill("");
  await page.locator("#filter-user").press("Enter");
  await position(page, /^Page 1: 50 connections, and more$/);
  if (process.env.SHARDGATE_SCREENSHOT) await page.screenshot({ path: process.env.SHARDGATE_SCREENSHOT, fullPage: true });
  assert.deepEqual(complaints, []);
  await context.close();
  await Promise.all([...crowd, two[1]].map((client) => client.leave()));
});

it("closes one connection, by the keyboard as well, and says so if it is gone", async () => {
  const devices = [await connect("carol"), await connect("carol"), await connect("carol")];
  const { context, page, complaints } = await enter();
  await page.locator("#filter-user").fill("carol");
  await page.locator("#filter-user").press("Enter");
  await position(page, /^Page 1: 3 connections of carol$/);
  const order = (await ids(page)).map((id) => devices.find((client) => client.id === id));
  const close = (client) => page.getByRole("button", { name: `Close connection ${client.id} of carol`, exact: true });
  const dialog = page.getByRole("dialog", { name: "Close a connection of carol?" });
  await close(order[0]).focus();
  await page.keyboard.press("Enter");
  // One press closes nobody, and what is offered first bars nobody.
  await dialog.getByText(order[0].id).waitFor();
  assert.equal(await dialog.getByRole("button", { name: "Cancel" }).evaluate((button) => button === document.activeElement), true);
  await page.keyboard.press("Enter");
  await dialog.waitFor({ state: "hidden" });
  assert.ok(order[0].isOpen());
  await page.keyboard.press("Enter");
  assert.ok(await dialog.getByRole("radio", { name: /^Come back \(3011\)/ }).isChecked());
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal(await order[0].closed(), 3011);
  await result(page, "Connections", `Connection ${order[0].id} of carol is closed, and its client told to come back.`);
  await position(page, /^Page 1: 2 connections of carol$/);
  // Whoever goes through them by keyboard need not begin anew.
  await close(order[1]).and(page.locator(":focus")).waitFor();
  assert.ok(order[1].isOpen() && order[2].isOpen());
  await order[2].leave();
  await noticed(`/admin/connections/${order[2].id}`, (status) => status === 404);
  await close(order[2]).click();
  await dialog.getByRole("button", { name: "Close it" }).click();
  await result(page, "Connections", "404 notFound: this gateway has no such connection");
  await position(page, /^Page 1: 1 connection of carol$/);
  assert.ok(order[1].isOpen());
  await close(order[1]).click();
  await dialog.getByRole("radio", { name: /^Stay away \(3503/ }).check();
  await dialog.getByRole("button", { name: "Close it" }).click();
  assert.equal(await order[1].closed(), 3503);
  await result(page, "Connections", `its client told to stay away.`);
  assert.deepEqual(complaints, []);
  await context.close();
});

it("finds a user in the cluster and closes all of the user's connections, when that is meant", async () => {
  const name = `d/%?#<i>`, devices = [await connect(name), await connect(name)], other = await connect("erin");
  const { context, page, complaints } = await enter();
  const lookup = async (user) => { await page.locator("#lookup-user").fill(user); await page.locator("#lookup-user").press("Enter"); };
  await lookup("nobody");
  await result(page, "Find a user", "nobody is not connected to any gateway.");
  await lookup(name);
  await result(page, "Find a user", `${name} has 2 connections on 1 gateway.`);
  const { gatewayId } = await (await fetch(`${gateway.http}/stats`)).json();
  await card(page, "Find a user").getByRole("row", { name: `${gatewayId} 2` }).waitFor();
  // What is closed is who was found, whatever the field says by then.
  await page.locator("#lookup-user").fill("erin");
  const closeAll = page.getByRole("button", { name: `Close all of ${name}`, exact: true }), dialog = page.getByRole("dialog");
  await closeAll.click();
  await dialog.getByText("on every gateway of the cluster").waitFor();
  await page.keyboard.press("Escape");
  await dialog.waitFor({ state: "hidden" });
  await closeAll.click();
  assert.equal(await dialog.getByRole("button", { name: "Cancel" }).evaluate((button) => button === document.activeElement), true);
  await dialog.getByText("clients do not come back by themselves").click();
  await dialog.getByRole("button", { name: "Close all" }).click();
  assert.deepEqual(await Promise.all(devices.map((client) => client.closed())), [3503, 3503]);
  await result(page, "Find a user", `2 connections of ${name} closed on this gateway, and clients told to stay away`);
  assert.equal(await closeAll.count(), 0);
  assert.ok(other.isOpen());
  assert.deepEqual(complaints, []);
  await context.close();
  await other.leave();
});

it("sends messages, publishes and broadcasts what is JSON, byte for byte", async () => {
  await nobodyIsThere();
  const alice = await connect("alice"), bob = await connect("bob"), content = `{ "n" : 1e400,\t"t":"<b>ä😀" }`;
  bob.send({ type: "subscribe", channel: "room/1" });
  await bob.next("subscribed");
  const { context, page, complaints, asked } = await enter();
  const say = async (name, text, fields = {}) => {
    for (const [label, value] of Object.entries(fields)) await card(page, name).getByLabel(label, { exact: true }).fill(value);
    await card(page, name).getByLabel("Content (JSON)").fill(text);
    await card(page, name).getByRole("button").click();
  };
  // What is no JSON stays here.
  for (const [name, path, fields] of [["Send a message", "/admin/messages", { To: "alice" }], ["Publish", "/admin/publish", { Channel: "room/1" }], ["Broadcast", "/admin/broadcast", {}]]) {
    const field = card(page, name).getByLabel("Content (JSON)");
    for (const text of ["hello", `{"a":1} x`, `1,"to":"bob"`]) {
      await say(name, text, fields);
      await result(page, name, "Not JSON, so nothing was sent.");
      assert.equal(await field.getAttribute("aria-invalid"), "true");
    }
    await say(name, " \n");
    await result(page, name, "the content is missing");
    assert.equal(asked.filter((url) => url.endsWith(path)).length, 0);
    assert.equal(await field.evaluate((field) => field === document.activeElement), true);
    await field.fill("0");
    assert.equal(await field.getAttribute("aria-invalid"), null);
  }

  await say("Send a message", content, { To: "alice" });
  await result(page, "Send a message", /^Delivered: .* Id [0-9a-f-]{36}\.$/);
  const message = await alice.next("message");
  assert.ok(message.includes(`"from":"","to":"alice","content":${content},"ts":`), message);
  await say("Send a message", `"anybody?"`, { To: "nobody" });
  await result(page, "Send a message", /^Offline: /);
  await say("Send a message", "1", { To: "x".repeat(129) });
  await result(page, "Send a message", "400 badRequest: a user id is 1 to 128 bytes");
  await say("Send a message", JSON.stringify("x".repeat(70_000)), { To: "alice" });
  await result(page, "Send a message", "413 payloadTooLarge: the body is over limits.message_bytes");

  await say("Publish", content, { Channel: "room/1" });
  await result(page, "Publish", /^Published: .* Id [0-9a-f-]{36}\.$/);
  const publication = await bob.next("publication");
  assert.ok(publication.includes(`"channel":"room/1"`) && publication.includes(`"from":"","content":${content},"ts":`), publication);

  await say("Broadcast", "null");
  await result(page, "Broadcast", /^Broadcast: 2 connections of this gateway took it/);
  for (const client of [alice, bob]) assert.equal(JSON.parse(await client.next("broadcast")).content, null);
  assert.deepEqual(complaints, []);
  await context.close();
  await Promise.all([alice.leave(), bob.leave()]);
});

it("asks again when the token has changed, and loses nothing that was written", async () => {
  const folder = mkdtempSync(join(tmpdir(), "shardgate-admin-")), file = join(folder, "token"), newer = "another-token-of-16-bytes";
  writeFileSync(file, TOKEN);
  writeFileSync(join(folder, "shardgate.toml"), `admin.token = '@${file}'\n`);
  const own = await startGateway([...ARGS, "--config", join(folder, "shardgate.toml")]);
  try {
    const alice = await connect("alice", own), { context, page, complaints } = await enter({ where: own });
    await rows(page).filter({ hasText: alice.id }).waitFor();
    await page.getByLabel("To", { exact: true }).fill("alice");
    await card(page, "Send a message").getByLabel("Content (JSON)").fill(`"hello"`);
    writeFileSync(file, newer);
    own.signal("SIGHUP");
    // Shard by shard: which one the browser's connection is on is not known.
    const deadline = Date.now() + WAIT_MS;
    while (!await page.getByLabel("Token", { exact: true }).isVisible()) {
      assert.ok(Date.now() < deadline, "the old token is still taken");
      const answered = page.waitForResponse((answer) => answer.url().includes("/admin/connections"));
      await page.getByRole("button", { name: "Refresh" }).click();
      if ((await answered).status() === 401) await isAsked(page);
    }
    await page.getByRole("alert").filter({ hasText: "does not take this token. 401 unauthorized" }).waitFor();
    assert.equal(await rows(page).count(), 0);
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    await giveToken(page, newer);
    await rows(page).filter({ hasText: alice.id }).waitFor();
    await card(page, "Send a message").getByRole("button", { name: "Send" }).click();
    assert.equal(JSON.parse(await alice.next("message")).content, "hello");
    assert.deepEqual(complaints, []);
    await context.close();
    await alice.leave();
  } finally {
    await own.stop("SIGKILL");
    rmSync(folder, { recursive: true });
  }
});

it("drains the gateway, when that is meant", async () => {
  const own = await startGateway([...ARGS, "--admin-token", TOKEN, "--gateway-id", "gw-to-drain"]);
  try {
    const alice = await connect("alice", own), { context, page, complaints } = await enter({ where: own });
    await page.locator("#health").filter({ hasText: "Serving" }).waitFor();
    for (const [id, text] of [["gateway", "gw-to-drain"], ["connections", "1"], ["users", "1"], ["shards", "2"]]) await page.locator(`#f-${id}`).filter({ hasText: text }).waitFor();
    const drain = page.getByRole("button", { name: "Drain this gateway…" }), dialog = page.getByRole("dialog", { name: "Drain gw-to-drain?" });
    await drain.click();
    const words = await dialog.getByText(/takes no new connections/).textContent();
    for (const consequence of ["gw-to-drain", "its 1 connection ", "closes with 3001", "ends", "cannot be taken back"]) assert.ok(words.includes(consequence), words);
    await dialog.getByRole("button", { name: "Cancel" }).click();
    await dialog.waitFor({ state: "hidden" });
    // Somebody still comes in, and nobody was told to go.
    await (await connect("bob", own)).leave();
    assert.ok(alice.isOpen());
    await drain.click();
    await dialog.getByRole("button", { name: "Drain and end it" }).click();
    await result(page, "Drain", "The drain has begun.");
    assert.equal(JSON.parse(await alice.next("shutdown")).type, "shutdown");
    await page.locator("#health").filter({ hasText: "Draining" }).waitFor();
    assert.equal(await alice.closed(), 3001);
    assert.equal((await within(WAIT_MS, "the gateway to end", own.ended)).code, 0);
    await page.locator("#health").filter({ hasText: "No answer from the gateway" }).waitFor();
    await page.getByRole("button", { name: "Refresh" }).click();
    await result(page, "Connections", "No answer from the gateway.");
    assert.deepEqual(complaints, []);
    await context.close();
  } finally { await own.stop("SIGKILL"); }
});

for (const colorScheme of ["light", "dark"]) {
  it(`has nothing that axe objects to (${colorScheme})`, async () => {
    const alice = await connect("alice");
    const { context, page, complaints } = await open({ colorScheme });
    await giveToken(page, "wrong");
    await page.getByRole("alert").filter({ hasText: "401" }).waitFor();
    assert.deepEqual(await violations(page), []);
    await giveToken(page);
    await rows(page).filter({ hasText: alice.id }).waitFor();
    await page.locator("#lookup-user").fill("alice");
    await page.locator("#lookup-user").press("Enter");
    await result(page, "Find a user", "alice has 1 connection");
    await card(page, "Broadcast").getByRole("button").click();
    await result(page, "Broadcast", "the content is missing");
    await page.locator("#health").filter({ hasText: "Serving" }).waitFor();
    assert.deepEqual(await violations(page), []);
    await page.getByRole("button", { name: "Drain this gateway…" }).click();
    await page.getByRole("dialog").waitFor();
    assert.deepEqual(await violations(page), []);
    assert.deepEqual(complaints, []);
    await context.close();
    await alice.leave();
  });
}

it("fits a phone without sideways scrolling", async () => {
  const long = "x".repeat(128), client = await connect(long);
  const { context, page, complaints } = await open({ viewport: { width: 360, height: 740 } });
  const fits = () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
  assert.ok(await fits());
  await giveToken(page);
  await rows(page).filter({ hasText: client.id }).waitFor();
  await page.locator("#lookup-user").fill(long);
  await page.locator("#lookup-user").press("Enter");
  await result(page, "Find a user", "has 1 connection");
  assert.ok(await fits());
  await page.getByRole("button", { name: "Close all of" }).click();
  await page.getByRole("dialog").waitFor();
  assert.ok(await fits());
  assert.deepEqual(complaints, []);
  await context.close();
  await client.leave();
});
