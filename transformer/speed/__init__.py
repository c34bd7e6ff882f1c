"""How fast this machine trains and translates, beside what it could do."""
