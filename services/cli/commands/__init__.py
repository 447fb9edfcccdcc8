"""One file per group of subcommands; each is loaded when it is used."""
