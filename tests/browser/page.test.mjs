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

/** Opens the page; `complaints` collects everything the browser's console would show in red. `instead` may answer a frame
 *  of the page in the gateway's stead, as one would that is configured in another way or has lost its neighbours. */
async function open({ query = "", instead, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 820 }, colorScheme: "light", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT_MS);
  const complaints = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(error.stack));
  if (instead) await page.routeWebSocket(/\/ws\?/, (socket) => {
    const server = socket.connectToServer();
    socket.onMessage((text) => {
      const frame = JSON.parse(text), answer = instead(frame);
      if (answer) socket.send(JSON.stringify({ id: frame.id, ...answer })); else server.send(text);
    });
  });
  await page.goto(gateway.http + "/" + query);
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
    channel: root.getByRole("textbox", { name: "Channel", exact: true }),
    join: async (channel) => {
      await root.getByRole("textbox", { name: "Channel", exact: true }).fill(channel);
      await root.getByRole("button", { name: "Join channel as" }).click();
    },
    leave: (channel) => root.getByRole("button", { name: `Leave channel ${channel}`, exact: true }).click(),
    /** By its name a target that is joined: else it is called `NAME, not joined`. */
    target: (name) => root.getByRole("radio", { name, exact: true }),
    problem: (text) => root.getByRole("alert").filter({ hasText: text }).waitFor(),
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
    await alice.join("room1");
    await alice.target("#room1").waitFor();
    await alice.say("is anybody in this room?");
    await alice.bubble("is anybody in this room?").locator(".tick.published").waitFor();
    await alice.join("ä".repeat(128));
    await alice.problem("1 to 255 bytes");
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

it("lets users of two tabs talk in a channel", async () => {
  const first = await open(), second = await open({ query: "?users=carol,dave" });
  const { alice } = first, carol = panel(second.page, "carol"), dave = panel(second.page, "dave");
  for (const { page } of [first, second]) await page.getByRole("button", { name: "Connect all" }).click();
  await Promise.all([alice.is("open"), carol.is("open"), dave.is("open")]);
  // As it stands there: whoever just clicks is in the same channel.
  for (const one of [alice, carol]) {
    await one.root.getByRole("button", { name: "Join channel as" }).click();
    await one.target("#room1").and(one.root.locator(":checked")).waitFor();
  }
  await alice.say("Hello <b>room</b>");
  const arrived = carol.bubble("Hello <b>room</b>");
  await arrived.filter({ hasText: "alice#room1" }).waitFor();
  await alice.bubble("Hello <b>room</b>").locator(".tick.published").waitFor();
  await carol.say("Hello alice");
  await alice.bubble("Hello alice").filter({ hasText: "carol#room1" }).waitFor();
  // Their own publications came back to both, and are shown once.
  for (const [one, text] of [[alice, "Hello <b>room</b>"], [carol, "Hello alice"]]) assert.equal(await one.bubble(text).count(), 1);
  // The user is still a target, and what goes there does not go to the channel.
  await carol.target("dave").check();
  await carol.say("only for dave");
  await dave.bubble("only for dave").waitFor();
  await carol.leave("room1");
  await carol.note("Left #room1").waitFor();
  await alice.say("too late for carol");
  await alice.bubble("too late for carol").locator(".tick.published").waitFor();
  await carol.join("room1");
  await carol.target("#room1").waitFor();
  await alice.say("welcome back");
  await carol.bubble("welcome back").waitFor();
  assert.equal(await carol.bubble("too late for carol").count(), 0);
  assert.equal(await alice.bubble("only for dave").count(), 0);
  assert.equal(await dave.bubble("welcome back").count(), 0);
  assert.deepEqual([...first.complaints, ...second.complaints], []);
  await Promise.all([first.context.close(), second.context.close()]);
});

it("tells own publications that come back from those of another device, in a burst too", async () => {
  const { context, page, complaints, alice, bob } = await open();
  await page.getByRole("button", { name: "Connect all" }).click();
  await Promise.all([alice.is("open"), bob.is("open")]);
  await alice.root.getByRole("button", { name: "Add device of alice" }).click();
  const second = panel(page, "alice, device 2");
  await second.is("open");
  for (const one of [alice, second, bob]) {
    await one.join("crowd");
    await one.target("#crowd").waitFor();
  }
  // Both in one turn of the page: a mouse is never at two places.
  await page.locator('.panel[data-user="alice"] .burst-btn').evaluateAll((buttons) => buttons.forEach((button) => button.click()));
  for (const one of [alice, second]) {
    await one.bubble("100 of 100 acknowledged").filter({ hasText: "100 published" }).waitFor();
    await one.bubble("100 of 100 received").filter({ hasText: "in order" }).waitFor();
    assert.equal(await one.root.locator(".msg").count(), 2);
  }
  await bob.bubble("100 of 100 received").filter({ hasText: "in order" }).nth(1).waitFor();
  await bob.say("all there");
  for (const one of [alice, second]) await one.bubble("all there").filter({ hasText: "bob#crowd" }).waitFor();
  assert.deepEqual(complaints, []);
  await context.close();
});

it("joins, writes and leaves by keyboard", async () => {
  const { context, page, complaints, alice } = await open();
  const press = async (...keys) => { for (const key of keys) await page.keyboard.press(key); };
  const focused = async (locator) => locator.and(page.locator(":focus")).waitFor();
  await alice.connect();
  await alice.is("open");
  await alice.channel.focus();
  await press("Enter");
  await alice.target("#room1").waitFor();
  const text = alice.root.getByRole("textbox", { name: "Message from alice to #room1" });
  await focused(text);
  await page.keyboard.type("typed");
  await press("Enter");
  await alice.bubble("typed").locator(".tick.published").waitFor();
  await alice.target("#room1").focus();
  await press("ArrowLeft");
  await focused(alice.target("bob").and(alice.root.locator(":checked")));
  await alice.root.getByRole("textbox", { name: "Message from alice to bob" }).waitFor();
  await press("ArrowRight", "Tab");
  await focused(alice.root.getByRole("button", { name: "Leave channel room1" }));
  await press("Enter");
  await alice.target("#room1").waitFor({ state: "detached" });
  await focused(alice.channel);
  assert.equal(await alice.target("bob").count(), 0, "one target is no choice");
  assert.deepEqual(complaints, []);
  await context.close();
});

it("says beside the channels what the gateway refused there", async () => {
  let permitted = true, reachable = true;
  const { context, complaints, alice } = await open({ instead: (frame) => {
    if (frame.type === "subscribe" && frame.channel === "secret" && !permitted) return { type: "error", code: "notPermitted", message: "not for <i>you</i>" };
    if (frame.type === "unsubscribe" && !permitted) return { type: "error", code: "unavailable", message: "later" };
    if (frame.type === "publish" && !reachable) return { type: "ack", messageId: "01920000-0000-7000-8000-000000000001", status: "failed" };
    if (frame.type === "publish" && !permitted) return { type: "error", code: "notPermitted", message: "listen only" };
  } });
  await alice.connect();
  await alice.is("open");
  for (const name of ["", "ä".repeat(128), "a\u0085b"]) {
    await alice.join(name);
    await alice.problem("A channel name has 1 to 255 bytes and no control characters.");
  }
  permitted = false;
  await alice.join("secret");
  await alice.problem("#secret: notPermitted: not for <i>you</i>");
  assert.equal(await alice.root.getByRole("radio").count(), 0);
  permitted = true;
  await alice.join("secret");
  await alice.target("#secret").waitFor();
  assert.equal(await alice.root.getByRole("alert").filter({ hasText: /./ }).count(), 0);
  permitted = false;
  await alice.say("may I?");
  await alice.bubble("may I?").locator(".tick.refused").waitFor();
  await alice.note("notPermitted: listen only").waitFor();
  await alice.root.getByRole("button", { name: "Burst 100 messages from alice" }).click();
  await alice.bubble("100 of 100 acknowledged").filter({ hasText: "100 refused" }).waitFor();
  assert.equal(await alice.root.locator(".note.error").count(), 2);
  await alice.leave("secret");
  await alice.problem("#secret: unavailable: later");
  await alice.target("#secret").waitFor();
  reachable = false;
  await alice.say("anybody out there?");
  await alice.bubble("anybody out there?").locator(".tick.failed").waitFor();
  await alice.note("#secret: It may not have reached everyone").waitFor();
  // What was joined and is refused now stays, to be tried again or let go.
  await alice.disconnect();
  await alice.target("#secret, not joined").waitFor();
  await alice.connect();
  await alice.problem("#secret: notPermitted");
  await alice.target("#secret, not joined").waitFor();
  permitted = reachable = true;
  await alice.root.getByRole("button", { name: "Join channel secret again" }).click();
  await alice.target("#secret").waitFor();
  assert.equal(await alice.root.getByRole("alert").filter({ hasText: /./ }).count(), 0);
  await alice.say("here again");
  await alice.bubble("here again").locator(".tick.published").waitFor();
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
  for (const one of [alice, bob]) for (const channel of ["room1", "room2"]) {
    await one.join(channel);
    await one.target("#" + channel).waitFor();
  }
  await bob.leave("room2");
  await bob.target("#room2").waitFor({ state: "detached" });
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
  // What they had joined is joined again, and nothing that they had left.
  for (const one of [alice, bob]) await one.target("#room1").waitFor();
  await alice.say("to a room that bob left");
  await alice.bubble("to a room that bob left").locator(".tick.published").waitFor();
  await alice.target("#room1").check();
  await alice.say("back in the room");
  await bob.bubble("back in the room").filter({ hasText: "alice#room1" }).waitFor();
  assert.equal(await bob.bubble("to a room that bob left").count(), 0);
  await alice.target("bob").check();
  await alice.say("back again");
  await bob.bubble("back again").waitFor();
  // While nobody listened, the browser itself reports each failed try; nothing else may have gone wrong.
  assert.deepEqual(complaints.filter((text) => !/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|Unexpected response code: 503/.test(text)), []);
  await context.close();
});

it("fits a phone without sideways scrolling", async () => {
  const { context, page, complaints } = await open({ viewport: { width: 360, height: 740 } });
  await page.getByRole("button", { name: "Connect all" }).click();
  const alice = panel(page, "alice");
  await alice.is("open");
  for (const channel of ["room1", "x".repeat(255)]) {
    await alice.join(channel);
    await alice.target("#" + channel).waitFor();
  }
  await alice.join("ä".repeat(128));
  await alice.problem("1 to 255 bytes");
  // Neither the page nor anything cut off in it.
  assert.deepEqual(await alice.root.locator(".target, .channels, .chips, .feed .scroll").evaluateAll((parts) => parts.filter((part) => part.scrollWidth > part.clientWidth).map((part) => part.className)), []);
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
  for (const one of [alice, bob]) {
    await one.join("room1");
    await one.target("#room1").waitFor();
  }
  await alice.say("And this is for everyone in the room.");
  await bob.bubble("And this is for everyone in the room.").waitFor();
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

it("says no more than it knows: one tick for what is delivered, and whose times it shows", async () => {
  const { context, complaints, alice, bob } = await open();
  await alice.connect();
  await bob.connect();
  await alice.peer("online");
  await alice.say("one tick");
  const tick = alice.bubble("one tick").locator(".tick.delivered");
  await tick.waitFor();
  const path = await tick.locator("path").getAttribute("d");
  assert.equal(path.match(/M/g).length, 1, `one stroke: ${path}`);
  assert.match(await tick.getAttribute("title"), /whether anybody has seen it is not known/);
  await alice.root.getByText("Times are this browser's").waitFor();
  assert.match(await alice.root.getByRole("img", { name: /in this browser: newest .*, longest / }).getAttribute("title"), /p99/);
  assert.deepEqual(complaints, []);
  await context.close();
});

it("shows what one device sends on the user's others in the page, and says that the page does", async () => {
  const { context, page, complaints, alice, bob } = await open();
  await alice.connect();
  await bob.connect();
  await alice.peer("online");
  await alice.root.getByRole("button", { name: "Add device of alice" }).click();
  const second = panel(page, "alice, device 2");
  await second.is("open");
  await alice.say("from the first");
  await bob.bubble("from the first").waitFor();
  const copy = second.bubble("from the first");
  await copy.getByText("to bob, from device 1").waitFor();
  assert.match(await copy.locator(".from").getAttribute("title"), /the gateway sends no copies/);
  // What comes by itself is not put there besides.
  await second.root.getByRole("textbox", { name: "To", exact: true }).fill("alice");
  await second.say("to myself");
  await alice.bubble("to myself").waitFor();
  assert.equal(await alice.bubble("to myself").count(), 1);
  assert.equal(await bob.bubble("to myself").count(), 0);
  assert.deepEqual(complaints, []);
  await context.close();
});
