"""What control (at save) and the authorizer (at decision) share about Rego: names, tree, reads."""
