"""E-mail: how a mail is composed, and the providers that take it."""
