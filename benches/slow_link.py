#!/usr/bin/env python3
"""A long and narrow line on the loopback: slow_link.py LISTEN_PORT TARGET_PORT [--rtt MS] [--rate BYTES].

Passes TCP connections on. Each byte takes half of the round-trip time (default 50 ms) each way, and all connections
together get so many bytes a second each way (default 20,000,000); a new connection costs one round trip more, as its
handshake would. It holds back whoever sends too much, as a full queue would, but acknowledges at once: TCP's own window
is not what limits here, as with well-tuned systems. Python's standard library only. Runs until it is killed.
"""

import argparse
import asyncio
import collections
import time

PIECE_BYTES = 16 << 10
# What may wait in the queue of the line, in seconds.
QUEUE = 0.1


class Direction:
    """One way of the line: pieces go one after the other."""

    def __init__(self, rate):
        self.rate = rate
        self.free_at = 0.0

    def book(self, count):
        """When so many bytes that come now have left."""
        self.free_at = max(self.free_at, time.monotonic()) + count / self.rate
        return self.free_at


async def deliver(queue, arrived, writer, delay):
    while True:
        while not queue:
            arrived.clear()
            await arrived.wait()
        left_at, piece = queue.popleft()
        await asyncio.sleep(max(0, left_at + delay - time.monotonic()))
        if piece is None:
            writer.write_eof()
            return
        writer.write(piece)
        await writer.drain()


async def pump(reader, writer, way, delay):
    queue, arrived = collections.deque(), asyncio.Event()
    delivery = asyncio.create_task(deliver(queue, arrived, writer, delay))
    try:
        while piece := await reader.read(PIECE_BYTES):
            left_at = way.book(len(piece))
            queue.append((left_at, piece))
            arrived.set()
            await asyncio.sleep(max(0, left_at - time.monotonic() - QUEUE))
    finally:
        queue.append((time.monotonic(), None))
        arrived.set()
    await delivery


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("listen", type=int)
    parser.add_argument("target", type=int)
    parser.add_argument("--rtt", type=float, default=50, help="milliseconds")
    parser.add_argument("--rate", type=float, default=20e6, help="bytes a second, each way")
    args = parser.parse_args()
    delay, up, down = args.rtt / 2000, Direction(args.rate), Direction(args.rate)

    async def connect(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", args.target, limit=1 << 16)
        except OSError:
            writer.close()
            return
        await asyncio.sleep(2 * delay)
        ways = pump(reader, far_writer, up, delay), pump(far_reader, writer, down, delay)
        await asyncio.gather(*ways, return_exceptions=True)
        writer.close()
        far_writer.close()

    async with await asyncio.start_server(connect, "127.0.0.1", args.listen, limit=1 << 16) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
