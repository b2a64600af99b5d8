"""Forward processes, and the losses that go with them."""
