// Starts the real gateway for a test and ends exactly the process that it started.
// SHARDGATE_BIN names the binary; every wait has a deadline and fails with the gateway's own log.
import { spawn } from "node:child_process";
import http from "node:http";

const START_MS = 30_000;
const STOP_MS = 40_000;

const running = new Set();
// A test runner that dies must not leave gateways behind.
process.on("exit", () => { for (const child of running) child.kill("SIGKILL"); });
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));

/** The test's environment without any SHARDGATE_ variable: only the arguments configure the gateway. */
const environment = () => Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(SHARDGATE_|RUST_LOG)/.test(name)));

/** `args` beyond `--listen`; `port` 0 lets the kernel choose. */
export async function startGateway(args = [], port = 0) {
  const binary = process.env.SHARDGATE_BIN;
  if (!binary) throw new Error("SHARDGATE_BIN is not set: it names the gateway binary to test");
  const child = spawn(binary, ["--listen", `127.0.0.1:${port}`, ...args], { env: environment(), stdio: ["ignore", "pipe", "pipe"] });
  running.add(child);
  let log = "", wake = () => {};
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8");
    stream.on("data", (text) => { log += text; wake(); });
  }
  const ended = new Promise((resolve) => child.on("close", (code, signal) => { running.delete(child); resolve({ code, signal }); wake(); }));
  child.on("error", (error) => { log += error.message; child.exitCode ??= -1; wake(); });

  const deadline = Date.now() + START_MS;
  const address = () => log.match(/listening on \S*?:(\d+)\b/);
  while (!(address() && /\bReady\b/.test(log))) {
    if (!running.has(child) || child.exitCode !== null) throw new Error(`the gateway ended before it was ready:\n${log}`);
    const left = deadline - Date.now();
    if (left <= 0) { child.kill("SIGKILL"); throw new Error(`the gateway was not ready within ${START_MS} ms:\n${log}`); }
    let timer;
    await new Promise((resolve) => { wake = resolve; timer = setTimeout(resolve, left); });
    clearTimeout(timer);
  }
  const chosen = Number(address()[1]);
  return {
    port: chosen, pid: child.pid, ended,
    http: `http://127.0.0.1:${chosen}`, ws: `ws://127.0.0.1:${chosen}/ws`,
    log: () => log,
    signal: (name) => child.kill(name),
    /** Asks it to end and waits until it has; `{ code, signal }`. */
    async stop(name = "SIGTERM") {
      child.kill(name);
      return within(STOP_MS, "the gateway to end", ended).catch((error) => { child.kill("SIGKILL"); throw new Error(`${error.message}\n${log}`); });
    },
  };
}

/** `promise`, or an error that says what was awaited. */
export async function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`waited ${ms} ms for ${what}`)), ms); });
  try { return await Promise.race([promise, late]); } finally { clearTimeout(timer); }
}

/** One plain HTTP request: `{ status, headers, body }`. */
export function request(url, { method = "GET", headers = {} } = {}) {
  return within(10_000, `${method} ${url}`, new Promise((resolve, reject) => {
    const sent = http.request(url, { method, headers, agent: false }, (answer) => {
      let body = "";
      answer.setEncoding("utf8");
      answer.on("data", (text) => { body += text; });
      answer.on("end", () => resolve({ status: answer.statusCode, headers: answer.headers, body }));
    });
    sent.on("upgrade", (answer, socket) => { socket.destroy(); resolve({ status: answer.statusCode, headers: answer.headers, body: "" }); });
    sent.on("error", reject);
    sent.end();
  }));
}
