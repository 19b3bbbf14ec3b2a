"""The example for Python does what it shows: it publishes, receives, and comes back to the next gateway."""

import asyncio
import json
import sys
import unittest
from pathlib import Path

from websockets.asyncio.client import connect

sys.path.insert(0, str(Path(__file__).parent))
from gateway import Gateway  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "client.py"
SECONDS = 30


class Examples(unittest.IsolatedAsyncioTestCase):
    async def test_the_client_publishes_receives_and_comes_back(self):
        with Gateway("--drain-timeout", "1s") as first:
            example = await asyncio.create_subprocess_exec(
                sys.executable,
                EXAMPLE,
                f"{first.ws}?user=python",
                "room",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            self.addCleanup(lambda: example.returncode is None and example.kill())

            async def expect(text):
                while line := await asyncio.wait_for(example.stdout.readline(), SECONDS):
                    if line.decode().rstrip() == text:
                        return
                self.fail(f"it ended before it said {text!r}")

            await expect("joined room")
            example.stdin.write(b"one\n")
            await expect("python: one")
            async with connect(f"{first.ws}?user=bob") as bob:
                await bob.send(json.dumps({"type": "publish", "channel": "room", "content": "hi"}))
                await expect("bob: hi")
            first.terminate()
            self.assertEqual(await asyncio.to_thread(first.wait), 0)
        # There is no gateway now.
        example.stdin.write(b"two\n")
        with Gateway("--listen", f"127.0.0.1:{first.port}"):
            await expect("joined room")
            await expect("python: two")
            example.stdin.close()
            self.assertEqual(await asyncio.wait_for(example.wait(), SECONDS), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
