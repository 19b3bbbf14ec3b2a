// The opponent on Socket.IO: node socketio.mjs --listen HOST:PORT
//
// A chat as its documentation shows it, with what its pages on performance and memory advise: WebSocket only,
// `bufferutil` beside it, and the request of the handshake let go. A user is a room, and so is a channel.

import { createServer } from 'node:http';
import { randomUUID } from 'node:crypto';
import { Server } from 'socket.io';
import { address } from './contract.mjs';

const http = createServer();
const io = new Server(http, {
  transports: ['websocket'],
  serveClient: false,
  perMessageDeflate: false,
  maxHttpBufferSize: 65536,
  pingInterval: 25_000,
  pingTimeout: 65_000,
});

io.on('connection', (socket) => {
  const from = socket.handshake.query.user;
  // Kept for nothing else, for as long as the connection lives.
  socket.conn.request = null;
  socket.join(`user:${from}`);
  socket.on('message', ({ to, content }, answer) => {
    const id = randomUUID();
    io.to(`user:${to}`).emit('message', { id, from, to, content, ts: Date.now() });
    answer?.({ messageId: id });
  });
  socket.on('publish', ({ channel, content }, answer) => {
    const id = randomUUID();
    io.to(`channel:${channel}`).emit('publication', { channel, id, from, content, ts: Date.now() });
    answer?.({ messageId: id });
  });
  socket.on('subscribe', (channel, answer) => {
    socket.join(`channel:${channel}`);
    answer?.({ channel });
  });
  socket.on('unsubscribe', (channel, answer) => {
    socket.leave(`channel:${channel}`);
    answer?.({ channel });
  });
});

http.listen({ ...address(), backlog: 4096 }, () => console.log('listening'));
