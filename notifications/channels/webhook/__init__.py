"""Webhooks: a message as a signed HTTPS request to an address of the recipient's own."""
