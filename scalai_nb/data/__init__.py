"""Data as a `Dataset` over `row`: read, checked against a contract, kept in a versioned lake.

In: files (`readers`), DataFrames and Datasets; names of datasets and versions.
Out: `from_frame`, `to_frame`, `read_csv`; `Contract` with its `Check`;
`Gate`, which holds what is written to it; `ingest`; `Categories`, labels that are held as codes.
`data.lake` keeps versions, `data.readers` reads what people have, `data.rules` holds what a
contract looks at.
Imports: the ground (errors, files, types); `compute` (blocks, arrow, cuts).
"""
