"""A client in Python: joins a channel, publishes each line that it reads and prints what others publish.

    pip install websockets
    python3 examples/client.py [ws://127.0.0.1:8080/ws?user=python] [room1]

With a gateway that has a key, TOKEN in the environment is the user's token. It ends with its input, once all is published.
"""

import asyncio
import itertools
import json
import os
import random
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake


class Client:
    def __init__(self, url, channel):
        self.url, self.channel = url, channel
        self.headers = {"Authorization": f"Bearer {os.environ['TOKEN']}"} if "TOKEN" in os.environ else {}
        self.unanswered = {}  # publications without an ack, by id
        self.ids = itertools.count(1)
        self.socket = None  # only while the channel is joined
        self.attempt = 0
        self.input_ended = False
        self.done = asyncio.Event()

    async def run(self):
        """Connects again and again, until all is done or the gateway says not to come back."""
        while not self.done.is_set():
            try:
                async with connect(self.url, subprotocols=["shardgate.v1"], additional_headers=self.headers) as socket:
                    await self.follow(socket)
            except (OSError, InvalidHandshake, TimeoutError) as error:
                print(error, file=sys.stderr)
            self.socket = None
            if not self.done.is_set():
                await asyncio.sleep(random.uniform(0, min(20, 0.5 * 2**self.attempt)))
                self.attempt += 1

    async def follow(self, socket):
        """One connection, to its end."""
        try:
            async for data in socket:
                await self.handle(socket, json.loads(data))
        except ConnectionClosed:
            pass
        if 3500 <= (socket.close_code or 1006) < 4000:
            sys.exit(f"closed: {socket.close_code} {socket.close_reason}")

    async def handle(self, socket, frame):
        match frame["type"]:
            case "welcome":
                self.attempt = 0
                await socket.send(json.dumps({"type": "subscribe", "channel": self.channel}))
            case "subscribed":
                print(f"joined {frame['channel']}", flush=True)
                self.socket = socket
                # What was not answered goes out again. Its first copy may have arrived: readers see it twice then.
                for publication in list(self.unanswered.values()):
                    await socket.send(json.dumps(publication))
            case "publication":
                print(f"{frame['from']}: {frame['content']}", flush=True)
            case "ack" if frame["status"] == "published":
                self.unanswered.pop(frame["id"], None)
                await self.end_if_done()
            case "ack":
                self.send_again_later(frame["id"])
            case "shutdown":
                # The gateway leaves and gives every client another time to go.
                leave = lambda: asyncio.ensure_future(socket.close())  # noqa: E731
                asyncio.get_running_loop().call_later(frame["reconnectAfterMs"] / 1000, leave)
            case "error":
                print(f"{frame['code']}: {frame['message']}", file=sys.stderr)
                if frame["code"] in ("rateLimited", "unavailable"):
                    self.send_again_later(frame.get("id"))
                else:
                    self.unanswered.pop(frame.get("id"), None)
                    await self.end_if_done()

    def send_again_later(self, id):
        def send():
            if self.socket and id in self.unanswered:
                asyncio.ensure_future(self.socket.send(json.dumps(self.unanswered[id])))

        asyncio.get_running_loop().call_later(1, send)

    async def publish(self, content):
        publication = {"type": "publish", "channel": self.channel, "content": content, "id": str(next(self.ids))}
        self.unanswered[publication["id"]] = publication
        if self.socket:
            try:
                await self.socket.send(json.dumps(publication))
            except ConnectionClosed:
                pass  # it goes out once the channel is joined again

    async def end_if_done(self):
        if self.input_ended and not self.unanswered:
            self.done.set()
            if self.socket:
                await self.socket.close()

    async def read(self):
        """Publishes lines as they come."""
        lines = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(lines)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        while line := await lines.readline():
            await self.publish(line.decode().rstrip("\n"))
        self.input_ended = True
        await self.end_if_done()


async def main():
    url, channel = [*sys.argv[1:], *["ws://127.0.0.1:8080/ws?user=python", "room1"][len(sys.argv) - 1 :]]
    client = Client(url, channel)
    reading = asyncio.create_task(client.read())
    await client.run()
    await reading


asyncio.run(main())
