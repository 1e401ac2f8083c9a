"""What the official client of the Model Context Protocol gets of a server, as JSON on one line

python mcp_client.py FOLDER TOOL [NAME=VALUE …] -- COMMAND …
"""

import asyncio
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


async def ask(folder: str, tool: str, arguments: dict[str, str], command: list[str]) -> dict:
    server = StdioServerParameters(
        command=command[0], args=command[1:], cwd=folder, env=dict(os.environ)
    )
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        hello = await session.initialize()
        await session.send_ping()
        listed = await session.list_tools()
        called = await session.call_tool(tool, arguments)
        return {
            "version": hello.protocol_version,
            "tools": {t.name: t.annotations.read_only_hint for t in listed.tools},
            "error": called.is_error,
            "text": called.content[0].text,
        }


folder, tool, *given = sys.argv[1:]
cut = given.index("--")
arguments = dict(word.split("=", 1) for word in given[:cut])
print(json.dumps(asyncio.run(ask(folder, tool, arguments, given[cut + 1 :]))))
