"""Sign-in of people by their organization's OpenID provider."""
