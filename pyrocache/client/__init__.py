"""The part of pyrocache that runs in the user's process: the client, key and value encoding, request routing."""
