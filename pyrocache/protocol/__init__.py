"""What crosses the wire: commands, messages, limits. Pure."""
