// The opponent on Node and `ws`: node node_ws.mjs --listen HOST:PORT
//
// As the documentation of `ws` has it: no compression, `bufferutil` beside it, dead peers found by pings in one round
// for all. A publication is turned into bytes once for all subscribers.

import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';
import { Hub, address } from './contract.mjs';

const PING_INTERVAL_MS = 25_000;

const channels = new Map();
const hub = new Hub('node-ws', {
  subscribe(connection, channel) {
    const subscribers = channels.get(channel);
    if (subscribers) subscribers.add(connection);
    else channels.set(channel, new Set([connection]));
    (connection.channels ??= new Set()).add(channel);
  },
  unsubscribe(connection, channel) {
    const subscribers = channels.get(channel);
    subscribers?.delete(connection);
    if (subscribers?.size === 0) channels.delete(channel);
    connection.channels?.delete(channel);
  },
  publish(_connection, channel, text) {
    const bytes = Buffer.from(text);
    for (const subscriber of channels.get(channel) ?? []) subscriber.send(bytes, { binary: false });
  },
});

const http = createServer();
const server = new WebSocketServer({ server: http, path: '/ws', perMessageDeflate: false, maxPayload: 65536 });

server.on('connection', (socket, request) => {
  socket.isAlive = true;
  socket.on('pong', () => (socket.isAlive = true));
  socket.on('message', (data) => {
    socket.isAlive = true;
    hub.handle(socket, data.toString());
  });
  socket.on('close', () => {
    for (const channel of socket.channels ?? []) {
      const subscribers = channels.get(channel);
      subscribers.delete(socket);
      if (subscribers.size === 0) channels.delete(channel);
    }
    hub.leave(socket);
  });
  // A broken connection is the peer's business; 'close' follows.
  socket.on('error', () => {});
  const userId = new URLSearchParams(request.url.split('?')[1]).get('user');
  if (userId !== null) hub.join(socket, userId);
});

setInterval(() => {
  for (const socket of server.clients) {
    if (!socket.isAlive) {
      socket.terminate();
      continue;
    }
    socket.isAlive = false;
    socket.ping();
  }
}, PING_INTERVAL_MS);

http.listen({ ...address(), backlog: 4096 }, () => console.log('listening'));
