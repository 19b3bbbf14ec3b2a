// The opponent on Bun: bun bun_server.mjs --listen HOST:PORT
//
// As its documentation has it: the connection's own data instead of a map, channels by the publish and subscribe that
// come with it, compression off, pings by the server itself.

import { Hub, address } from './contract.mjs';

const { host, port } = address();

const server = Bun.serve({
  hostname: host,
  port,
  fetch(request, server) {
    const url = new URL(request.url);
    if (url.pathname === '/ws' && server.upgrade(request, { data: { asked: url.searchParams.get('user') } })) return;
    return new Response('not found', { status: 404 });
  },
  websocket: {
    perMessageDeflate: false,
    maxPayloadLength: 65536,
    idleTimeout: 90,
    sendPings: true,
    open(socket) {
      if (socket.data.asked !== null) hub.join(socket, socket.data.asked);
    },
    message(socket, text) {
      hub.handle(socket, text);
    },
    close(socket) {
      hub.leave(socket);
    },
  },
});

const hub = new Hub('bun', {
  subscribe: (connection, channel) => connection.subscribe(channel),
  unsubscribe: (connection, channel) => connection.unsubscribe(channel),
  publish: (_connection, channel, text) => server.publish(channel, text),
});

console.log('listening');
