"""What node and client agree on: routing, wire format, membership, the name server."""
