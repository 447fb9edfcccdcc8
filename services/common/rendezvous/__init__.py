"""Where processes of one plane hand things to each other, in memory or through Valkey."""
