"""The contract as Python's `websockets` sees it: a client that is stricter than most about the protocol.

Run by tests/run; by hand: SHARDGATE_BIN=target/debug/shardgate tests/.venv/bin/python tests/clients/test_websockets.py
"""

import asyncio
import json
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from urllib.parse import quote

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

sys.path.insert(0, str(Path(__file__).parent))
from gateway import Gateway  # noqa: E402

FRAME_SECONDS = 10


def soon(awaitable):
    """Never waits longer than a frame may take."""
    return asyncio.wait_for(awaitable, FRAME_SECONDS)


class Client:
    """A connection whose frames are awaited by type; frames of other types wait their turn."""

    def __init__(self, socket):
        self.socket = socket
        self.early = []

    async def send(self, frame):
        await self.socket.send(json.dumps(frame))

    async def next(self, kind=None):
        for index, frame in enumerate(self.early):
            if kind in (None, frame["type"]):
                return self.early.pop(index)
        while True:
            frame = json.loads(await soon(self.socket.recv()))
            if kind in (None, frame["type"]):
                return frame
            self.early.append(frame)

    async def ask(self, frame, kind):
        await self.send(frame)
        return await self.next(kind)

    async def closed(self):
        """The close code that the gateway sent."""
        try:
            while True:
                await soon(self.socket.recv())
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd else 1006


class ClientCase(unittest.IsolatedAsyncioTestCase):
    """One gateway for all tests of a class, users of their own for each test."""

    args = ()

    @classmethod
    def setUpClass(cls):
        cls.gateway = Gateway(*cls.args)
        cls.addClassCleanup(cls.gateway.__exit__)

    def someone(self, name):
        return f"{name}-{self.id().rsplit('.', 1)[-1]}"

    async def connect(self, query="", **options):
        socket = await soon(connect(self.gateway.ws + query, compression=None, open_timeout=FRAME_SECONDS, close_timeout=FRAME_SECONDS, **options))
        self.addAsyncCleanup(socket.close)
        return Client(socket)

    async def join(self, user, **options):
        client = await self.connect(f"?user={quote(user)}", **options)
        client.welcome = await client.next()
        self.assertEqual(client.welcome["type"], "welcome")
        self.assertEqual(client.welcome["userId"], user)
        return client


class Contract(ClientCase):
    args = ("--auth-timeout", "1s")

    async def test_welcome_and_subprotocol(self):
        alice = await self.join(self.someone("alice"), subprotocols=["shardgate.v1"])
        self.assertEqual(alice.socket.subprotocol, "shardgate.v1")
        self.assertEqual(alice.welcome["heartbeatMs"], 25000)

    async def test_compression_is_declined_politely(self):
        async with connect(f"{self.gateway.ws}?user={self.someone('alice')}", compression="deflate") as socket:
            self.assertEqual(json.loads(await soon(socket.recv()))["type"], "welcome")

    async def test_messages_both_ways_with_acks(self):
        alice, bob = await self.join(self.someone("alice")), await self.join(self.someone("bob"))
        for sender, receiver in ((alice, bob), (bob, alice)):
            to = receiver.welcome["userId"]
            ack = await sender.ask({"type": "message", "to": to, "content": {"n": [1, 2.5, None]}, "id": "c1"}, "ack")
            message = await receiver.next("message")
            self.assertEqual(message["from"], sender.welcome["userId"])
            self.assertEqual(message["content"], {"n": [1, 2.5, None]})
            self.assertLess(abs(message["ts"] - time.time() * 1000), 10_000)
            self.assertEqual(ack, {"type": "ack", "id": "c1", "messageId": message["id"], "status": "delivered"})

    async def test_offline(self):
        alice = await self.join(self.someone("alice"))
        ack = await alice.ask({"type": "message", "to": self.someone("nobody"), "content": "?", "id": "c1"}, "ack")
        self.assertEqual(ack["status"], "offline")

    async def test_presence(self):
        alice, bob = await self.join(self.someone("alice")), await self.join(self.someone("bob"))
        users = [self.someone("bob"), self.someone("carol")]
        answer = await alice.ask({"type": "presence", "users": users, "id": "c2"}, "presence")
        self.assertEqual(answer, {"type": "presence", "id": "c2", "users": dict(zip(users, (True, False)))})
        await bob.socket.close()
        deadline = time.monotonic() + 5
        while (await alice.ask({"type": "presence", "users": users, "id": "c3"}, "presence"))["users"][users[0]]:
            self.assertLess(time.monotonic(), deadline, "bob is still online after leaving")

    async def test_several_devices(self):
        user = self.someone("alice")
        devices = [await self.join(user) for _ in range(3)]
        bob = await self.join(self.someone("bob"))
        await bob.ask({"type": "message", "to": user, "content": "all of you", "id": "c1"}, "ack")
        ids = {(await device.next("message"))["id"] for device in devices}
        self.assertEqual(len(ids), 1)

    async def test_utf8(self):
        crab, alice = await self.join(self.someone("🦀")), await self.join(self.someone("Ålice 你好"))
        await alice.send({"type": "message", "to": self.someone("🦀"), "content": "grüße 🦀\u2028\u0000"})
        message = await crab.next("message")
        self.assertEqual((message["from"], message["content"]), (self.someone("Ålice 你好"), "grüße 🦀\u2028\u0000"))

    async def test_fragments(self):
        alice = await self.join(self.someone("alice"))
        frame = json.dumps({"type": "message", "to": self.someone("alice"), "content": "é🦀" * 50, "id": "f"}, ensure_ascii=False)
        await alice.socket.send(list(frame))
        self.assertEqual((await alice.next("message"))["content"], "é🦀" * 50)
        self.assertEqual((await alice.next("ack"))["status"], "delivered")

    async def test_ping_and_heartbeat(self):
        alice = await self.join(self.someone("alice"))
        pong = await alice.socket.ping(b"are you there?")
        await soon(pong)
        answer = await alice.ask({"type": "heartbeat"}, "heartbeat")
        self.assertLess(abs(answer["ts"] - time.time() * 1000), 10_000)

    async def test_message_of_64_kib_and_one_byte_more(self):
        alice = await self.join(self.someone("alice"))
        frame = json.dumps({"type": "message", "to": self.someone("alice"), "content": "", "id": "big"})
        full = frame.replace('""', '"' + "x" * (65536 - len(frame)) + '"')
        self.assertEqual(len(full), 65536)
        await alice.socket.send(full)
        self.assertEqual((await alice.next("ack"))["status"], "delivered")
        await alice.socket.send(full.replace("xx", "xxx", 1))
        self.assertEqual(await alice.closed(), 1009)

    async def test_binary_is_refused(self):
        alice = await self.join(self.someone("alice"))
        await alice.socket.send(b'{"type":"heartbeat"}')
        self.assertEqual(await alice.closed(), 1003)

    async def test_first_message_names_the_user(self):
        client = await self.connect()
        welcome = await client.ask({"type": "auth", "userId": self.someone("alice")}, "welcome")
        self.assertEqual(welcome["userId"], self.someone("alice"))

    async def test_no_credential_in_time(self):
        client = await self.connect()
        self.assertEqual(await client.closed(), 3502)

    async def test_bad_credential(self):
        client = await self.connect()
        await client.send({"type": "auth", "userId": "a" * 129})
        self.assertEqual(await client.closed(), 3500)

    async def test_bad_user_at_the_handshake(self):
        with self.assertRaises(InvalidStatus) as refused:
            await self.connect("?user=" + "a" * 129)
        self.assertEqual(refused.exception.response.status_code, 400)

    async def test_close_codes_come_back(self):
        for code in (1000, 3000, 4321):
            alice = await self.join(self.someone("alice"))
            await soon(alice.socket.close(code, "bye"))
            self.assertEqual(alice.socket.protocol.close_rcvd.code, code)

    async def test_errors(self):
        alice = await self.join(self.someone("alice"))
        await alice.socket.send("not json")
        self.assertEqual((await alice.next("error"))["code"], "badRequest")
        error = await alice.ask({"type": "dance", "id": "d"}, "error")
        self.assertEqual((error["code"], error["id"]), ("unknownType", "d"))


class Shutdown(ClientCase):
    args = ("--drain-timeout", "2s")

    async def test_shutdown_frame_then_3001_then_exit_0(self):
        clients = [await self.join(f"user{n}") for n in range(5)]
        self.gateway.terminate()
        for client in clients:
            self.assertGreaterEqual((await client.next("shutdown"))["reconnectAfterMs"], 0)
        with self.assertRaises(InvalidStatus) as refused:
            await self.connect("?user=late")
        self.assertEqual(refused.exception.response.status_code, 503)
        self.assertIn("Retry-After", refused.exception.response.headers)
        self.assertEqual([await client.closed() for client in clients], [3001] * 5)
        self.assertEqual(await asyncio.to_thread(self.gateway.wait), 0)


class Tls(ClientCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cert, key = (f"{directory.name}/{name}.pem" for name in ("cert", "key"))
        self_signed = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
        subprocess.run([*self_signed.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
        cls.args = ("--tls-cert", cert, "--tls-key", key)
        cls.context = ssl.create_default_context(cafile=cert)
        super().setUpClass()

    async def test_messages_and_goodbye(self):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            self.context.minimum_version = self.context.maximum_version = version
            alice, bob = [await self.join(self.someone(name), ssl=self.context) for name in ("alice", "bob")]
            for content in ("hello", "x" * 60_000):
                ack = await alice.ask({"type": "message", "to": bob.welcome["userId"], "content": content, "id": "c"}, "ack")
                self.assertEqual(ack["status"], "delivered")
                self.assertEqual((await bob.next("message"))["content"], content)
            self.assertEqual(alice.socket.transport.get_extra_info("ssl_object").version().replace(".", "_"), version.name)
            await soon(alice.socket.close(1000, "bye"))
            self.assertEqual(alice.socket.protocol.close_rcvd.code, 1000)


if __name__ == "__main__":
    unittest.main(verbosity=2)
