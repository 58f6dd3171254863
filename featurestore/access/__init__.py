"""Who may call: signatures of requests, access keys, sessions."""
