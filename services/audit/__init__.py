"""Takes records into hash chains, keeps them, lists them and proves that nobody changed them."""
