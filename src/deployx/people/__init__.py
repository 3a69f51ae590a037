"""Who may: users, their sessions, grants, the one policy function, and the audit."""
