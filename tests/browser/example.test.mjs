// The example for browsers in a real browser: it joins, publishes, shows what others publish, and comes back.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { it } from "node:test";
import { chromium } from "playwright-core";
import { join } from "../clients/client.mjs";
import { startGateway, within } from "../clients/gateway.mjs";

it("examples/browser.html publishes, receives and comes back", async (test) => {
  const executablePath = process.env.CHROMIUM ?? execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
  test.after(() => browser.close());
  // As `python3 -m http.server` serves it.
  const html = readFileSync(new URL("../../examples/browser.html", import.meta.url));
  const server = createServer((_request, answer) => answer.setHeader("Content-Type", "text/html").end(html));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  test.after(() => server.close());

  const first = await startGateway(["--drain-timeout", "1s"]);
  test.after(() => first.signal("SIGKILL"));
  const page = await browser.newPage();
  page.setDefaultTimeout(30_000);
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.stack));
  const query = new URLSearchParams({ url: first.ws, user: "alice", channel: "room" });
  await page.goto(`http://127.0.0.1:${server.address().port}/browser.html?${query}`);
  const line = (text) => page.getByRole("listitem").filter({ hasText: text }).waitFor();
  const status = (text) => page.getByRole("status").filter({ hasText: new RegExp(`^${text}$`) }).waitFor();
  const publish = async (text) => {
    await page.getByRole("textbox", { name: "Publish" }).fill(text);
    await page.getByRole("button", { name: "Send" }).click();
  };

  await status("connected");
  await publish("one");
  await line("alice: one");
  const bob = await join(first, "bob");
  bob.send({ type: "publish", channel: "room", content: "hi" });
  await line("bob: hi");
  first.signal("SIGTERM");
  assert.equal((await within(15_000, "the end", first.ended)).code, 0);
  // There is no gateway now.
  await status("disconnected");
  await publish("two");
  const second = await startGateway([], first.port);
  test.after(() => second.signal("SIGKILL"));
  await status("connected");
  await line("alice: two");
  assert.deepEqual(errors, []);
});
