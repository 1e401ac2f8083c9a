"""Who may ask for what, and how much: before a request is read further, on HTTP and on gRPC.

In: files of certificates and of hashed tokens; the headers and the address of a request.
Out: `Door` with the name of a client, or a `Refusal`; `Tls`, `TokenFile`, `Budgets`, `AccessLog`.
Imports: serving.refusal, serving.exchange, errors, files.
"""
