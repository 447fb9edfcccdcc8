"""What reaches an agent beside its answers: notifications, open streams, and how both end."""
