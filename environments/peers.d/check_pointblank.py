"Pointblank over Polars: a table against its rules whenever a line comes. Arguments: Parquet, rules"

import json
import sys
from pathlib import Path

import pointblank as pb
import polars as pl

frame, rules = pl.read_parquet(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
schema = pb.Schema(columns=[(name, str(dtype)) for name, dtype in frame.schema.items()])


def plan():
    "The rules as steps: they hold what they find, and so are made anew each time"
    steps = pb.Validate(frame).col_schema_match(schema)
    for rule in rules:
        name, known, (low, high) = rule["name"], rule["categories"], rule["bounds"]
        if known:
            steps = steps.col_vals_in_set(name, [*known, None])
        else:
            steps = steps.col_vals_between(name, low, high, na_pass=True)
    return steps


print("0", flush=True)
for _ in sys.stdin:
    done = plan().interrogate(collect_extracts=False)
    print(sum(not step.all_passed for step in done.validation_info), flush=True)
