"""Traffic of all kinds at once, for drills: clients that stay, clients that leave, upstreams that break."""

import asyncio
import random
from contextlib import suppress

import httpx

from scripts.fake_console import FakeConsole, Reply, Request

KINDS = ("normal", "json", "breaks", "endless", "without_usage", "rate_limited", "gzipped", "no_answer")


async def no_answer(request: Request, reply: Reply) -> None:
    """Take the request and break the connection off."""
    reply.reset()


def send(console: FakeConsole, port: int, count: int, at_once: int, seed: int) -> None:
    """Send so many requests through the proxy at `port`, chosen by `seed`; what fails is part of the drill."""
    console.scenarios.setdefault("no_answer", no_answer)
    chance = random.Random(seed)
    plan = [(chance.choice(KINDS), chance.choice((3, 20, 10**9))) for _ in range(count)]
    asyncio.run(_send(port, plan, at_once))


async def _send(port: int, plan: list[tuple[str, int]], at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=at_once)) as client:

        async def one(kind: str, leave_after: int) -> None:
            leave_after = 20 if kind == "endless" else leave_after
            async with gate:
                with suppress(httpx.HTTPError):
                    async with client.stream(
                        "POST",
                        f"http://127.0.0.1:{port}/v1/messages",
                        headers={"x-scenario": kind},
                        json={"model": "claude-asked", "stream": True},
                    ) as answer:
                        chunks = 0
                        async for _ in answer.aiter_raw():
                            chunks += 1
                            if chunks >= leave_after:
                                break

        await asyncio.gather(*(one(kind, leave_after) for kind, leave_after in plan))
