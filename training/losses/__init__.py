"""One file per loss: plain functions of tensors that know neither trainer nor method."""
