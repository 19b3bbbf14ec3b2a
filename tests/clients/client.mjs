// A `ws` client whose frames can be awaited: nothing that arrives early is lost, nothing is awaited without a deadline.
import WebSocket from "ws";
import { within } from "./gateway.mjs";

const FRAME_MS = 10_000;

export class Client {
  #frames = []; #wake = () => {};
  constructor(url, { protocols = [], ...options } = {}) {
    this.socket = new WebSocket(url, protocols, { perMessageDeflate: false, ...options });
    this.pings = 0;
    this.opened = new Promise((resolve, reject) => { this.socket.once("open", resolve); this.socket.once("error", reject); });
    this.opened.catch(() => {});
    this.closed = new Promise((resolve) => this.socket.once("close", (code, reason) => { this.ended = true; this.#wake(); resolve({ code, reason: reason.toString() }); }));
    this.refused = new Promise((resolve) => this.socket.once("unexpected-response", (_request, answer) => {
      answer.resume();
      resolve({ status: answer.statusCode, headers: answer.headers });
      this.socket.terminate();
    }));
    this.socket.on("error", (error) => { this.error = error; });
    this.socket.on("ping", () => { this.pings++; });
    this.socket.on("message", (data, binary) => { this.#frames.push({ text: data.toString(), binary, ...(binary ? {} : parsed(data)) }); this.#wake(); });
  }

  /** Sends an object as JSON, or text as it is. */
  send(frame) { this.socket.send(typeof frame === "string" ? frame : JSON.stringify(frame)); }

  /** The next frame; with `type`, the next of that type, while the others stay for later. */
  async next(type) {
    const found = () => this.#frames.findIndex((frame) => type === undefined || frame.json?.type === type);
    await within(FRAME_MS, `a frame${type ? ` of type ${type}` : ""}; got ${this.#frames.map((frame) => frame.text)}`, (async () => {
      while (found() < 0) {
        if (this.ended) throw new Error(`closed while a ${type ?? "frame"} was awaited`);
        await new Promise((resolve) => { this.#wake = resolve; });
      }
    })());
    const [frame] = this.#frames.splice(found(), 1);
    return type === undefined ? frame : Object.assign(frame.json, { [TEXT]: frame.text });
  }

  /** What came and was not asked for yet. */
  get waiting() { return this.#frames.map((frame) => frame.text); }

  async close(code = 1000, reason = "") { this.socket.close(code, reason); return this.end(); }
  end() { return within(FRAME_MS, "the close", this.closed); }
}

/** The frame as it came, on what `next(type)` returns. */
export const TEXT = Symbol("text");
const parsed = (data) => { try { return { json: JSON.parse(data) }; } catch { return {}; } };

/** Connects as a user of development mode and takes the welcome. */
export async function join(gateway, user, options) {
  const client = new Client(`${gateway.ws}?user=${encodeURIComponent(user)}`, options);
  client.welcome = await client.next("welcome");
  return client;
}
