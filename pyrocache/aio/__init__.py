"""The asyncio client: `AsyncPyroCacheClient`, and what it is made of.

It shares keys, codec, routing and the retry policy with the blocking client in `pyrocache.client`.
"""
