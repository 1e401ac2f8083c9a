"""Models of sums over rows, with scikit-learn's contract: a few passes, wherever the rows are.

In: rows as `learn.features.rows` takes them.
Out: `LinearRegression`, `LogisticRegression`, `PoissonRegression`, `KMeans`, `PCA`.
Imports: errors, kernels, compute, learn.features.
"""
