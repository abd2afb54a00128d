"""What a large cluster costs: its nodes, name server and clients simulated in this process (`command` is the entry)."""
