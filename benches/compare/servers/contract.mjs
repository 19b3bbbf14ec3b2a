// The part of the gateway's contract that the workloads need, for servers in JavaScript.
//
// Duty: who is connected as whom, and what is answered to a frame. The servers differ in how a connection sends
// (`connection.send(text)`) and in how they reach a channel (`publish(channel, text)`), so both are given.

import { randomUUID } from 'node:crypto';

/** The port of `--listen HOST:PORT`. */
export function address() {
  const [host, port] = (process.argv[process.argv.indexOf('--listen') + 1] ?? '').split(':');
  if (!port) {
    console.error('--listen HOST:PORT is missing');
    process.exit(2);
  }
  return { host, port: Number(port) };
}

export class Hub {
  #name;
  #channels;
  #users = new Map();

  /** `channels` has subscribe(connection, channel), unsubscribe(connection, channel), publish(connection, channel, text). */
  constructor(name, channels) {
    this.#name = name;
    this.#channels = channels;
  }

  join(connection, userId) {
    connection.userId = userId;
    const connections = this.#users.get(userId);
    if (connections) connections.push(connection);
    else this.#users.set(userId, [connection]);
    connection.send(
      JSON.stringify({ type: 'welcome', connId: randomUUID(), userId, gatewayId: this.#name, heartbeatMs: 25000 }),
    );
  }

  leave(connection) {
    const connections = this.#users.get(connection.userId);
    if (!connections) return;
    const rest = connections.filter((other) => other !== connection);
    if (rest.length > 0) this.#users.set(connection.userId, rest);
    else this.#users.delete(connection.userId);
  }

  /** Carries out one text frame. */
  handle(connection, text) {
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return fail(connection, 'badRequest');
    }
    const { type, id } = frame;
    if (connection.userId === undefined) {
      if (type !== 'auth') return fail(connection, 'unauthorized', id);
      return this.join(connection, frame.userId);
    }
    switch (type) {
      case 'message': {
        const messageId = randomUUID();
        const { to, content } = frame;
        const connections = this.#users.get(to);
        if (connections) {
          const out = JSON.stringify({ type, id: messageId, from: connection.userId, to, content, ts: Date.now() });
          for (const other of connections) other.send(out);
        }
        return ack(connection, id, messageId, connections ? 'delivered' : 'offline');
      }
      case 'publish': {
        const messageId = randomUUID();
        const { channel, content } = frame;
        this.#channels.publish(
          connection,
          channel,
          JSON.stringify({ type: 'publication', channel, id: messageId, from: connection.userId, content, ts: Date.now() }),
        );
        return ack(connection, id, messageId, 'published');
      }
      case 'subscribe':
      case 'unsubscribe':
        this.#channels[type](connection, frame.channel);
        return connection.send(JSON.stringify({ type: `${type}d`, channel: frame.channel, id }));
      case 'heartbeat':
        return connection.send(JSON.stringify({ type, ts: Date.now() }));
      default:
        return fail(connection, 'unknownType', id);
    }
  }
}

function ack(connection, id, messageId, status) {
  if (id !== undefined) connection.send(JSON.stringify({ type: 'ack', id, messageId, status }));
}

function fail(connection, code, id) {
  connection.send(JSON.stringify({ type: 'error', id, code, message: 'this frame could not be carried out' }));
}
