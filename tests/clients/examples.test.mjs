// The example for Node does what it shows: it publishes, receives, and comes back to the next gateway.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join as path } from "node:path";
import { createInterface } from "node:readline";
import { it } from "node:test";
import { fileURLToPath } from "node:url";
import { join } from "./client.mjs";
import { startGateway, within } from "./gateway.mjs";

const file = (name) => fileURLToPath(new URL(name, import.meta.url));

it("examples/node.mjs publishes, receives and comes back", async (test) => {
  // A folder as a reader has it after `npm install ws`.
  const folder = mkdtempSync(path(tmpdir(), "shardgate-example-"));
  test.after(() => rmSync(folder, { recursive: true }));
  copyFileSync(file("../../examples/node.mjs"), path(folder, "node.mjs"));
  symlinkSync(file("../node_modules"), path(folder, "node_modules"));

  const first = await startGateway(["--drain-timeout", "1s"]);
  test.after(() => first.signal("SIGKILL"));
  const example = spawn(process.execPath, ["node.mjs", `${first.ws}?user=node`, "room"], { cwd: folder, stdio: ["pipe", "pipe", "ignore"] });
  test.after(() => example.kill("SIGKILL"));
  const ended = new Promise((resolve) => example.on("close", resolve));
  const lines = createInterface({ input: example.stdout })[Symbol.asyncIterator]();
  const expect = (text) => within(30_000, text, (async () => {
    for (;;) {
      const { value, done } = await lines.next();
      assert.ok(!done, `it ended before it said ${text}`);
      if (value === text) return;
    }
  })());

  await expect("joined room");
  example.stdin.write("one\n");
  await expect("node: one");
  const bob = await join(first, "bob");
  bob.send({ type: "publish", channel: "room", content: "hi" });
  await expect("bob: hi");
  first.signal("SIGTERM");
  assert.equal((await within(15_000, "the end", first.ended)).code, 0);
  // There is no gateway now.
  example.stdin.write("two\n");
  const second = await startGateway([], first.port);
  test.after(() => second.signal("SIGKILL"));
  await expect("joined room");
  await expect("node: two");
  example.stdin.end();
  assert.equal(await within(15_000, "the end of the example", ended), 0);
});
