"""Cards and tables for people: one description (`card`), as text (`text`) and as HTML (`html`). Knows no cache."""
