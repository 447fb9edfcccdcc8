"""Changes one character of a token to another one, for certain: a fixed replacement is now and then
the character that stood there. The last character of base64 may carry unused bits; leave it alone.
"""


def altered(token: str, at: int = 0) -> str:
    """The token with the character at the position replaced by a different one of base64url."""
    at %= len(token)
    other = "B" if token[at] == "A" else "A"
    return token[:at] + other + token[at + 1 :]
