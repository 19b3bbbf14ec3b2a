// The contract as a Node client sees it: handshake, messages, acks, presence, limits and close codes.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Client, join, TEXT } from "./client.mjs";
import { request, startGateway, within } from "./gateway.mjs";

const UUID_V7 = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
const UPGRADE = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==" };

let gateway, users = 0;
/** Tests share a gateway and must not meet each other. */
const someone = (name) => `${name}-${++users}`;

before(async () => { gateway = await startGateway(["--auth-timeout", "1s", "--shards", "2"]); });
after(async () => { if (gateway) assert.deepEqual(await gateway.stop(), { code: 0, signal: null }, gateway.log()); });

describe("handshake", () => {
  it("welcomes a user of development mode", async () => {
    const user = someone("alice"), alice = await join(gateway, user);
    assert.match(alice.welcome.connId, UUID_V7);
    assert.equal(alice.welcome.userId, user);
    assert.equal(alice.welcome.heartbeatMs, 25_000);
    assert.ok(alice.welcome.gatewayId.length > 0);
    await alice.close();
  });

  it("chooses the subprotocol shardgate.v1 when it is offered", async () => {
    const alice = await join(gateway, someone("alice"), { protocols: ["other", "shardgate.v1"] });
    assert.equal(alice.socket.protocol, "shardgate.v1");
    await alice.close();
    const plain = await join(gateway, someone("alice"));
    assert.equal(plain.socket.protocol, "");
    await plain.close();
  });

  it("refuses what is no valid upgrade with 400", async () => {
    assert.equal((await request(gateway.http + "/ws?user=alice")).status, 400);
    const { "Sec-WebSocket-Key": _, ...keyless } = UPGRADE;
    assert.equal((await request(gateway.http + "/ws?user=alice", { headers: keyless })).status, 400);
  });

  it("refuses another version with 426 and names its own", async () => {
    const answer = await request(gateway.http + "/ws?user=alice", { headers: { ...UPGRADE, "Sec-WebSocket-Version": "8" } });
    assert.equal(answer.status, 426);
    assert.equal(answer.headers["sec-websocket-version"], "13");
  });

  it("refuses a foreign origin with 403 and takes its own", async () => {
    const foreign = new Client(`${gateway.ws}?user=alice`, { origin: "https://evil.example" });
    assert.equal((await within(10_000, "the refusal", foreign.refused)).status, 403);
    const own = await join(gateway, someone("alice"), { origin: gateway.http });
    await own.close();
  });

  it("refuses a user id that is none with 400", async () => {
    for (const user of ["", "a".repeat(129), "a\nb", "a\u0000b"]) {
      const refused = new Client(`${gateway.ws}?user=${encodeURIComponent(user)}`);
      assert.equal((await within(10_000, `the refusal of ${JSON.stringify(user)}`, refused.refused)).status, 400, JSON.stringify(user));
    }
    const longest = await join(gateway, "é".repeat(64));
    await longest.close();
  });
});

describe("who a client is, in development mode", () => {
  it("takes the user from the first message", async () => {
    const user = someone("alice"), alice = new Client(gateway.ws);
    await alice.opened;
    alice.send({ type: "auth", userId: user });
    assert.equal((await alice.next("welcome")).userId, user);
    await alice.close();
  });

  it("closes with 3502 when no credential came in time", async () => {
    const nobody = new Client(gateway.ws);
    assert.equal((await nobody.end()).code, 3502);
  });

  it("closes with 3500 on a user id that is none", async () => {
    for (const userId of ["", "a".repeat(129), "a\u0007b"]) {
      const bad = new Client(gateway.ws);
      await bad.opened;
      bad.send({ type: "auth", userId });
      assert.equal((await bad.end()).code, 3500, JSON.stringify(userId));
    }
  });

  it("carries nothing out for a stranger", async () => {
    const bob = await join(gateway, someone("bob")), stranger = new Client(gateway.ws);
    await stranger.opened;
    stranger.send({ type: "message", to: bob.welcome.userId, content: "hi", id: "m1" });
    const answer = await Promise.race([stranger.next("error"), stranger.end()]);
    assert.ok(answer.code === "unauthorized" || answer.code === 3500, JSON.stringify(answer));
    bob.send({ type: "heartbeat" });
    assert.equal((await bob.next()).json.type, "heartbeat", "the stranger's message must not arrive");
    await Promise.all([bob.close(), stranger.close()]);
  });

  it("answers the same user with the same connection, another one with 3507", async () => {
    const user = someone("alice"), alice = await join(gateway, user);
    alice.send({ type: "auth", userId: user });
    assert.equal((await alice.next("welcome")).connId, alice.welcome.connId);
    alice.send({ type: "auth", userId: someone("mallory") });
    assert.equal((await alice.end()).code, 3507);
  });
});

describe("messages", () => {
  it("go both ways, with acks", async () => {
    const alice = await join(gateway, someone("alice")), bob = await join(gateway, someone("bob"));
    for (const [from, to] of [[alice, bob], [bob, alice]]) {
      const sentAt = Date.now();
      from.send({ type: "message", to: to.welcome.userId, content: { text: "hello" }, id: "c1" });
      const message = await to.next("message"), ack = await from.next("ack");
      assert.match(message.id, UUID_V7);
      assert.ok(Math.abs(message.ts - sentAt) < 10_000);
      assert.deepEqual({ ...message }, { type: "message", id: message.id, from: from.welcome.userId, to: to.welcome.userId, content: { text: "hello" }, ts: message.ts, [TEXT]: message[TEXT] });
      assert.deepEqual({ ...ack }, { type: "ack", id: "c1", messageId: message.id, status: "delivered", [TEXT]: ack[TEXT] });
    }
    await Promise.all([alice.close(), bob.close()]);
  });

  it("are acknowledged only when they have an id, and null is none", async () => {
    const alice = await join(gateway, someone("alice")), bob = await join(gateway, someone("bob"));
    alice.send({ type: "message", to: bob.welcome.userId, content: 1 });
    alice.send({ type: "message", to: bob.welcome.userId, content: 2, id: null });
    alice.send({ type: "message", to: bob.welcome.userId, content: 3, id: "third", extra: { keys: "are ignored" } });
    assert.equal((await alice.next()).json.id, "third");
    for (const content of [1, 2, 3]) assert.equal((await bob.next("message")).content, content);
    await Promise.all([alice.close(), bob.close()]);
  });

  it("are offline when nobody is there", async () => {
    const alice = await join(gateway, someone("alice"));
    alice.send({ type: "message", to: someone("nobody"), content: null, id: "c1" });
    assert.equal((await alice.next("ack")).status, "offline");
    await alice.close();
  });

  it("pass their content through byte for byte", async () => {
    const alice = await join(gateway, someone("alice")), bob = await join(gateway, someone("bob"));
    for (const content of ['{ "b":1.0,  "a" : [1e2, -0, 12345678901234567890],"b":"\\u00e9é\\/" }', '"\\ud83e\\udd80 🦀"', "null", '""', "[ ]"]) {
      alice.send(`{"type":"message","to":${JSON.stringify(bob.welcome.userId)},"content":${content},"id":"x"}`);
      const message = await bob.next("message");
      assert.ok(message[TEXT].includes(`"content":${content}`), message[TEXT]);
    }
    await Promise.all([alice.close(), bob.close()]);
  });

  it("arrive in the order sent, across shards", async () => {
    const alice = await join(gateway, someone("alice"));
    const bobs = await Promise.all(Array.from({ length: 4 }, ((name) => () => join(gateway, name))(someone("bob"))));
    for (let n = 0; n < 150; n++) alice.send({ type: "message", to: bobs[0].welcome.userId, content: n, id: String(n) });
    for (const bob of bobs) for (let n = 0; n < 150; n++) assert.equal((await bob.next("message")).content, n);
    for (let n = 0; n < 150; n++) assert.equal((await alice.next("ack")).id, String(n));
    await Promise.all([alice, ...bobs].map((client) => client.close()));
  });

  it("reach every device of a user, the sender's own too", async () => {
    const user = someone("alice"), [one, two] = await Promise.all([join(gateway, user), join(gateway, user)]);
    assert.notEqual(one.welcome.connId, two.welcome.connId);
    one.send({ type: "message", to: user, content: "note to self", id: "c1" });
    assert.equal((await one.next("ack")).status, "delivered");
    assert.equal((await one.next("message")).id, (await two.next("message")).id);
    await Promise.all([one.close(), two.close()]);
  });

  it("speak UTF-8 in names and content", async () => {
    const crab = await join(gateway, someone("🦀")), alice = await join(gateway, someone("Ålice Ünïcode"));
    alice.send({ type: "message", to: crab.welcome.userId, content: "grüße 你好 🦀", id: "é" });
    const message = await crab.next("message");
    assert.equal(message.content, "grüße 你好 🦀");
    assert.equal(message.from, alice.welcome.userId);
    assert.equal((await alice.next("ack")).id, "é");
    await Promise.all([crab.close(), alice.close()]);
  });

  it("may come in fragments with a ping between them", async () => {
    const alice = await join(gateway, someone("alice"));
    const frame = JSON.stringify({ type: "message", to: alice.welcome.userId, content: "in pieces: é🦀", id: "f1" });
    const data = Buffer.from(frame), pong = new Promise((resolve) => alice.socket.once("pong", (payload) => resolve(payload.toString())));
    for (let at = 0; at < data.length; at += 7) {
      alice.socket.send(data.subarray(at, at + 7), { fin: at + 7 >= data.length, binary: false });
      if (at === 21) alice.socket.ping("between");
    }
    assert.equal(await within(10_000, "the pong", pong), "between");
    assert.equal((await alice.next("message")).content, "in pieces: é🦀");
    assert.equal((await alice.next("ack")).status, "delivered");
    await alice.close();
  });
});

describe("presence and heartbeat", () => {
  it("follows users as they come and go", async () => {
    const alice = await join(gateway, someone("alice")), bob = await join(gateway, someone("bob")), carol = someone("carol");
    const ask = async (id) => { alice.send({ type: "presence", users: [bob.welcome.userId, carol], id }); return alice.next("presence"); };
    assert.deepEqual((await ask("c2")).users, { [bob.welcome.userId]: true, [carol]: false });
    await bob.close();
    const deadline = Date.now() + 5_000;
    for (;;) {
      const answer = await ask("again");
      assert.equal(answer.id, "again");
      if (answer.users[bob.welcome.userId] === false) break;
      assert.ok(Date.now() < deadline, "bob is still online after leaving");
    }
    await alice.close();
  });

  it("refuses more than 100 users in one question", async () => {
    const alice = await join(gateway, someone("alice"));
    alice.send({ type: "presence", users: Array.from({ length: 100 }, (_, n) => `u${n}`), id: "most" });
    assert.equal(Object.keys((await alice.next("presence")).users).length, 100);
    alice.send({ type: "presence", users: Array.from({ length: 101 }, (_, n) => `u${n}`), id: "over" });
    const error = await alice.next("error");
    assert.equal(error.id, "over");
    assert.ok(["badRequest", "limitExceeded"].includes(error.code), error.code);
    await alice.close();
  });

  it("answers a heartbeat with the time, and a ping with a pong", async () => {
    const alice = await join(gateway, someone("alice"));
    alice.send({ type: "heartbeat" });
    assert.ok(Math.abs((await alice.next("heartbeat")).ts - Date.now()) < 10_000);
    const pong = new Promise((resolve) => alice.socket.once("pong", (payload) => resolve(payload.toString())));
    alice.socket.ping("x".repeat(125));
    assert.equal(await within(10_000, "the pong", pong), "x".repeat(125));
    await alice.close();
  });
});

describe("errors, limits and close codes", () => {
  it("answers a frame that it cannot carry out", async () => {
    const alice = await join(gateway, someone("alice"));
    for (const [frame, code, id] of [
      ["{not json", "badRequest", undefined],
      ['{"type":"dance","id":"d1"}', "unknownType", "d1"],
      ['{"type":"message","content":1,"id":"d2"}', "badRequest", "d2"],
      ['{"type":"message","to":"","content":1,"id":"d3"}', "badRequest", "d3"],
      ['{"type":"message","to":"bob","id":"d4"}', "badRequest", "d4"],
      ["[]", "badRequest", undefined],
    ]) {
      alice.send(frame);
      const error = await alice.next("error");
      assert.equal(error.code, code, frame);
      assert.equal(error.id, id, frame);
      assert.ok(error.message.length > 0);
    }
    await alice.close();
  });

  it("closes with 3501 after ten bad frames in a row, and not before", async () => {
    const alice = await join(gateway, someone("alice"));
    for (let n = 0; n < 9; n++) alice.send("{");
    alice.send({ type: "heartbeat" });
    for (let n = 0; n < 9; n++) await alice.next("error");
    await alice.next("heartbeat");
    for (let n = 0; n < 10; n++) alice.send(n % 2 ? "{" : '{"type":"dance"}');
    assert.equal((await alice.end()).code, 3501);
  });

  it("takes a message of 64 KiB and closes with 1009 over it", async () => {
    const alice = await join(gateway, someone("alice"));
    const frame = (size) => { const head = `{"type":"message","to":${JSON.stringify(alice.welcome.userId)},"content":"`; return head + "x".repeat(size - head.length - 2) + '"}'; };
    assert.equal(frame(65536).length, 65536);
    alice.send(frame(65536));
    assert.ok((await alice.next("message")).content.length > 65_000);
    alice.send(frame(65537));
    assert.equal((await alice.end()).code, 1009);
  });

  it("closes with 1009 when fragments add up to too much", async () => {
    const alice = await join(gateway, someone("alice"));
    for (let n = 0; n < 3; n++) alice.socket.send("x".repeat(30_000), { fin: false });
    assert.equal((await alice.end()).code, 1009);
  });

  it("refuses binary with 1003, broken UTF-8 with 1007, unmasked frames with 1002", async () => {
    const [binary, broken, unmasked] = await Promise.all([1, 2, 3].map(() => join(gateway, someone("alice"))));
    binary.socket.send(Buffer.from('{"type":"heartbeat"}'), { binary: true });
    assert.equal((await binary.end()).code, 1003);
    broken.socket.send(Buffer.from([0x22, 0xff, 0xfe, 0x22]), { binary: false });
    assert.equal((await broken.end()).code, 1007);
    unmasked.socket.send('{"type":"heartbeat"}', { mask: false });
    assert.equal((await unmasked.end()).code, 1002);
  });

  it("echoes the close code of the client", async () => {
    for (const code of [1000, 3000, 4999]) {
      const alice = await join(gateway, someone("alice"));
      assert.equal((await alice.close(code, "bye")).code, code);
    }
  });

  it("tells who sends too fast, by id", async () => {
    const alice = await join(gateway, someone("alice"));
    for (let n = 0; n < 260; n++) alice.send({ type: "message", to: alice.welcome.userId, content: n, id: `r${n}` });
    const error = await alice.next("error");
    assert.equal(error.code, "rateLimited");
    assert.match(error.id, /^r\d+$/);
    alice.socket.terminate();
  });
});

describe("http on the same port", () => {
  it("serves the try-it page in development mode, safely", async () => {
    const page = await request(gateway.http + "/");
    assert.equal(page.status, 200);
    assert.match(page.headers["content-type"], /^text\/html; ?charset=utf-8$/i);
    assert.match(page.headers["content-security-policy"] ?? "", /frame-ancestors 'none'/);
    assert.match(page.body, /<title>shardgate: try it<\/title>/);
    const head = await request(gateway.http + "/", { method: "HEAD" });
    assert.equal(head.status, 200);
    assert.equal(head.body, "");
  });

  it("answers health and statistics", async () => {
    for (const path of ["/health", "/readyz", "/livez"]) {
      const answer = await request(gateway.http + path);
      assert.equal(answer.status, 200, path);
    }
    assert.equal((await request(gateway.http + "/health")).body.trim(), "OK");
    const stats = JSON.parse((await request(gateway.http + "/stats")).body);
    for (const key of ["gatewayId", "connections", "users", "uptimeSeconds", "messagesIn", "messagesOut", "lastHealthCheck", "draining", "shards"]) assert.ok(key in stats, key);
    assert.equal(stats.shards.length, 2);
    assert.match((await request(gateway.http + "/metrics")).body, /^shardgate_connections\b/m);
  });

  it("refuses other paths and methods", async () => {
    assert.equal((await request(gateway.http + "/nothing")).status, 404);
    assert.equal((await request(gateway.http + "/echo")).status, 404);
    assert.equal((await request(gateway.http + "/admin/connections")).status, 404);
    const post = await request(gateway.http + "/health", { method: "POST" });
    assert.equal(post.status, 405);
    assert.match(post.headers.allow, /GET/);
  });
});
