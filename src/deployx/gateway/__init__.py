"""The link to the agents: sessions, signed orders, and the inbox that commits what they report."""
