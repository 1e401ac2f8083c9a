"""ConnectorX: the table `orders` of a database as Arrow whenever a line comes

Argument: the database, as `postgresql://…` or `sqlite:///…`.
"""

import sys

import connectorx

print("0", flush=True)
for _ in sys.stdin:
    table = connectorx.read_sql(sys.argv[1], "SELECT * FROM orders", return_type="arrow")
    print(len(table), flush=True)
