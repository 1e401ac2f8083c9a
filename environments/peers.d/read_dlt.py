"""dlt: the table `orders` of a database in blocks of Arrow whenever a line comes

Argument: the database, as `postgresql://…` or `sqlite:///…`.
"""

import os
import sys

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
from dlt.sources.sql_database import sql_table

BLOCK = 100_000  # rows
print("0", flush=True)
for _ in sys.stdin:
    orders = sql_table(sys.argv[1], table="orders", backend="pyarrow", chunk_size=BLOCK)
    print(sum(len(block) for block in orders), flush=True)
