"""What tool servers ask of agents: what they may, in which form it arrives, who answers."""
