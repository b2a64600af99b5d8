"""The machine room: stores, ledgers, Dask backends and MPI. Knows no physics."""
