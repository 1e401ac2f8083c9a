"""Asks a service for scores: over HTTP, with retries, hedging and a choice among replicas.

In: rows in any form; addresses of servers that speak the Open Inference Protocol.
Out: scores as an array, by `Client`; `Prediction`; the library's own errors.
Imports: errors, types and files; `data.sources` only where rows are a DataFrame. Of other
libraries numpy and urllib3: no server extra and nothing heavy.
"""
