"""The client for asyncio, from which `make client` generates `_sync`, except for `io`."""
