// What a Node client sees when the gateway pings, replaces, drains and comes back: each test has a gateway of its own.
import assert from "node:assert/strict";
import { it } from "node:test";
import { Client, join } from "./client.mjs";
import { request, startGateway, within } from "./gateway.mjs";

/** Runs `body` with a gateway and ends it whatever happens. */
const withGateway = (args, body) => async () => {
  const gateway = await startGateway(args);
  try { await body(gateway); } catch (error) { error.message += `\n--- gateway log\n${gateway.log()}`; throw error; } finally {
    gateway.signal("SIGKILL");
    await gateway.ended;
  }
};

it("pings a silent client, and closes with 3012 one that never answers",
  withGateway(["--heartbeat-interval", "1s", "--heartbeat-timeout", "3s"], async (gateway) => {
    const [alive, dead] = await Promise.all([join(gateway, "alive"), join(gateway, "dead", { autoPong: false })]);
    assert.equal(alive.welcome.heartbeatMs, 1_000);
    assert.equal((await within(15_000, "the close", dead.closed)).code, 3012);
    assert.ok(dead.pings > 0, "it was asked before it was given up");
    assert.ok(alive.pings > 0);
    alive.send({ type: "heartbeat" });
    await alive.next("heartbeat");
    await alive.close();
  }));

it("closes the oldest connection with 3504 when a user has too many",
  withGateway(["--limits-connections-per-user", "2"], async (gateway) => {
    const first = await join(gateway, "alice"), second = await join(gateway, "alice"), third = await join(gateway, "alice");
    assert.equal((await first.end()).code, 3504);
    for (const client of [second, third]) { client.send({ type: "heartbeat" }); await client.next("heartbeat"); }
    await Promise.all([second.close(), third.close()]);
  }));

it("answers 503 with Retry-After over the connection limit",
  withGateway(["--limits-connections", "1"], async (gateway) => {
    const first = await join(gateway, "alice"), second = new Client(`${gateway.ws}?user=bob`);
    const refused = await within(10_000, "the refusal", second.refused);
    assert.equal(refused.status, 503);
    assert.ok(Number(refused.headers["retry-after"]) >= 0);
    await first.close();
  }));

it("drains on SIGTERM: shutdown frame, 503 for new ones, 3001 for those who stay, exit 0",
  withGateway(["--drain-timeout", "3s"], async (gateway) => {
    const clients = await Promise.all(Array.from({ length: 20 }, (_, n) => join(gateway, `user${n}`)));
    gateway.signal("SIGTERM");
    const notices = await Promise.all(clients.map((client) => client.next("shutdown")));
    assert.ok(notices.every((notice) => Number.isInteger(notice.reconnectAfterMs) && notice.reconnectAfterMs >= 0));
    assert.ok(new Set(notices.map((notice) => notice.reconnectAfterMs)).size > 1, "not all are told to come back at once");
    const late = new Client(`${gateway.ws}?user=late`), refused = await within(10_000, "the refusal", late.refused);
    assert.equal(refused.status, 503);
    assert.ok(refused.headers["retry-after"] !== undefined);
    assert.equal((await request(gateway.http + "/readyz")).status, 503);
    assert.equal((await request(gateway.http + "/livez")).status, 200);
    clients[0].send({ type: "message", to: "user1", content: "still here", id: "c1" });
    assert.equal((await clients[1].next("message")).content, "still here");
    assert.equal((await clients[0].next("ack")).status, "delivered");
    assert.equal((await clients[0].close()).code, 1000);
    for (const client of clients.slice(1)) assert.equal((await client.end()).code, 3001);
    assert.deepEqual(await within(15_000, "the end", gateway.ended), { code: 0, signal: null });
  }));

it("ends at once on a second signal, with exit 1",
  withGateway(["--drain-timeout", "60s", "--drain-per-second", "1"], async (gateway) => {
    const clients = await Promise.all(Array.from({ length: 20 }, (_, n) => join(gateway, `user${n}`)));
    gateway.signal("SIGTERM");
    await Promise.any(clients.map((client) => client.next("shutdown")));
    // One that comes within a second of the first is the same order.
    const again = setInterval(() => gateway.signal("SIGTERM"), 100);
    assert.equal((await within(5_000, "the end", gateway.ended)).code, 1);
    clearInterval(again);
  }));

it("echoes text and binary on /echo when asked to",
  withGateway(["--echo"], async (gateway) => {
    const echo = new Client(`ws://127.0.0.1:${gateway.port}/echo`);
    await echo.opened;
    echo.socket.send("grüße");
    const text = await echo.next();
    assert.deepEqual([text.text, text.binary], ["grüße", false]);
    echo.socket.send(Buffer.from([0, 1, 2, 255]));
    assert.equal((await echo.next()).binary, true);
    assert.equal((await echo.close(1000)).code, 1000);
  }));

it("refuses a port in use with one clear line and exit 1",
  withGateway([], async (gateway) => {
    await assert.rejects(startGateway([], gateway.port), (error) => {
      assert.match(error.message, new RegExp(`127\\.0\\.0\\.1:${gateway.port}`));
      return true;
    });
  }));
