"""An encoder made of frozen pretrained networks and closed-form heads, for photographs."""
