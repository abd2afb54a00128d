"""The wire protocol: commands, messages, handshake and limits. Pure: no I/O, no threads, no clock."""
