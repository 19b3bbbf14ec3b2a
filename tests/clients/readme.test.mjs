// The script that README.md shows for browsers, as it stands but for the gateway's port.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, it } from "node:test";
import WebSocket from "ws";
import { join } from "./client.mjs";
import { startGateway, within } from "./gateway.mjs";

const SCRIPT_MS = 10_000;
let gateway;

before(async () => { gateway = await startGateway(); });
after(async () => { if (gateway) assert.deepEqual(await gateway.stop(), { code: 0, signal: null }, gateway.log()); });

it("subscribes, publishes and hears itself, messages and the end", async () => {
  const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  const scripts = [...readme.matchAll(/^```js\n(.*?)^```$/gms)].map(([, script]) => script);
  assert.equal(scripts.length, 1);
  const shown = "ws://127.0.0.1:8080/ws";
  assert.ok(scripts[0].includes(`"${shown}?user=alice"`), scripts[0]);

  const lines = [];
  let wake = () => {};
  const print = (...words) => { lines.push(words.join(" ")); wake(); };
  const printed = (line) => within(SCRIPT_MS, `"${line}"; printed so far: ${lines}`, (async () => {
    while (!lines.includes(line)) await new Promise((resolve) => { wake = resolve; });
  })());
  // A browser's WebSocket, as far as the script uses it.
  const run = new Function("WebSocket", "console", `${scripts[0].replace(shown, gateway.ws)}\nreturn socket;`);
  const socket = run(WebSocket, { log: print, error: print });

  await printed("alice published hi");
  await printed("p1 is published");
  const bob = await join(gateway, "bob");
  bob.send({ type: "message", to: "alice", content: "hello" });
  await printed("bob wrote hello");
  await bob.close();
  socket.close(4000);
  await printed("4000 stay away");
});
