"""Runs over the workers of a Dask cluster. Nothing here is imported with the package."""
