// A client in Node: joins a channel, publishes each line that it reads and prints what others publish.
//
//   npm install ws
//   node examples/node.mjs [ws://127.0.0.1:8080/ws?user=node] [room1]
//
// With a gateway that has a key, TOKEN in the environment is the user's token. It ends with its input, once all is published.
import { createInterface } from "node:readline";
import WebSocket from "ws";

const [url = "ws://127.0.0.1:8080/ws?user=node", channel = "room1"] = process.argv.slice(2);
const headers = process.env.TOKEN ? { Authorization: `Bearer ${process.env.TOKEN}` } : {};

const unanswered = new Map(); // publications without an ack, by id
let socket, attempt = 0, lastId = 0, joined = false, ending = false;

const send = (frame) => socket.send(JSON.stringify(frame));
const sendAgain = (id) => { if (joined && unanswered.has(id)) send(unanswered.get(id)); };

function connect() {
  socket = new WebSocket(url, ["shardgate.v1"], { headers });
  socket.on("message", (data) => {
    const frame = JSON.parse(data);
    switch (frame.type) {
      case "welcome":
        attempt = 0;
        send({ type: "subscribe", channel });
        break;
      case "subscribed":
        joined = true;
        console.log(`joined ${frame.channel}`);
        // What was not answered goes out again. Its first copy may have arrived: readers see it twice then.
        for (const publication of unanswered.values()) send(publication);
        break;
      case "publication":
        console.log(`${frame.from}: ${frame.content}`);
        break;
      case "ack":
        if (frame.status === "published") unanswered.delete(frame.id);
        else setTimeout(sendAgain, 1000, frame.id);
        endIfDone();
        break;
      case "shutdown":
        // The gateway leaves and gives every client another time to go.
        setTimeout(() => socket.close(), frame.reconnectAfterMs);
        break;
      case "error":
        console.error(`${frame.code}: ${frame.message}`);
        if (frame.code === "rateLimited" || frame.code === "unavailable") setTimeout(sendAgain, 1000, frame.id);
        else unanswered.delete(frame.id);
        endIfDone();
    }
  });
  socket.on("error", (error) => console.error(error.message)); // `close` follows
  socket.on("close", (code, reason) => {
    joined = false;
    if (ending) return;
    if (code >= 3500 && code < 4000) {
      console.error(`closed: ${code} ${reason}`);
      process.exit(1);
    }
    setTimeout(connect, Math.random() * Math.min(20_000, 500 * 2 ** attempt++));
  });
}

function endIfDone() {
  if (!inputEnded || unanswered.size > 0) return;
  ending = true;
  socket.close();
}

let inputEnded = false;
createInterface({ input: process.stdin })
  .on("line", (content) => {
    const publication = { type: "publish", channel, content, id: String(++lastId) };
    unanswered.set(publication.id, publication);
    if (joined) send(publication);
  })
  .on("close", () => { inputEnded = true; endIfDone(); });

connect();
